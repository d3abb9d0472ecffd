/* What BCC's headers lack or declare wrongly, and small things that every file needs. */
#pragma once

#define offsetof(type, member) __builtin_offsetof(type, member)
/* Of headers that need the C library: linux/if_packet.h, linux/socket.h, linux/in6.h. */
#define PACKET_HOST 0
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_ICMPV6 58

#define ntohs(x) __builtin_bswap16(x)
#define htons(x) __builtin_bswap16(x)
#define ntohl(x) __builtin_bswap32(x)
#define htonl(x) __builtin_bswap32(x)

#define IP_AT ETH_HLEN
#define ICMP_HEADER 8
#define ICMP_CHECKSUM 2
#define ANSWER_TTL 64

/* BCC 0.26 declares the first one with three arguments and the second one as u32 (include/uapi/linux/bpf.h of the
 * kernel has the numbers and the real signatures). */
static long (*redirect_neigh)(u32 ifindex, struct bpf_redir_neigh *nexthop, int length, u64 flags) = (void *)152;
static u64 (*socket_cookie)(void *ctx) = (void *)46;
static u64 (*netns_cookie)(void *ctx) = (void *)122;

/* Loops stay loops: the verifier walks them, and the text stays small. */
#define LOOP _Pragma("clang loop unroll(disable)")

#define V4_MAPPED htonl(0xffff)

/* Hides from the compiler what it knows of a number, so that it does not build a loop around another one whose end
 * the verifier cannot see. */
#define OPAQUE(number) asm volatile("" : "+r"(number))

/* Makes the compiler read again what lies in memory. */
#define FORGET() asm volatile("" : : : "memory")

/* Comparisons of addresses are arithmetic: each jump would double what the verifier has to walk. */
static bool same_addr(const struct addr *a, const struct addr *b)
{
	return !((a->w[3] ^ b->w[3]) | (a->w[2] ^ b->w[2]) | (a->w[1] ^ b->w[1]) | (a->w[0] ^ b->w[0]));
}

static void set_v4(struct addr *addr, __be32 v4)
{
	addr->w[0] = 0;
	addr->w[1] = 0;
	addr->w[2] = V4_MAPPED;
	addr->w[3] = v4;
}

/* The Internet checksum (RFC 1071) of a sum as bpf_csum_diff() returns it. */
static u16 checksum(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static u64 seconds(void)
{
	return bpf_ktime_get_coarse_ns() / 1000000000;
}

static u64 setting(u32 index)
{
	u64 *value = settings.lookup(&index);
	return value ? *value : 0;
}

/* From now on to_network looks at what the node itself sends. */
static void watch_own_packets(void)
{
	u32 index = SETTING_OWN_PACKETS;
	u64 *value = settings.lookup(&index);
	if (value && !*value)
		*value = 1;
}
