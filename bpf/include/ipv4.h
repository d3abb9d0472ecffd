/* What IPv4 has of its own. ipv6.h has the same names, and nothing else in the programs tells the families apart. */
#pragma once

#define PROGRAM(name) name
#define ETH_P_FAMILY ETH_P_IP
#define AF_FAMILY AF_INET
#define PROTO_ICMP IPPROTO_ICMP
/* No device has a smaller MTU (RFC 791). */
#define SMALLEST_MTU 68

#define IP_HEADER sizeof(struct iphdr)
#define PROTOCOL_AT offsetof(struct iphdr, protocol)
#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMP_UNREACHABLE 3
#define ICMP_UNREACHABLE_PORT 3
#define ICMP_TOO_BIG 3
#define ICMP_TOO_BIG_CODE 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_TOS 0xc0 /* internetwork control, as the kernel marks its ICMP errors */

static bool is_icmp_error(u8 type)
{
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* Whether the packet keeps the link alive, and is of no policy. ARP is what IPv4 has of the kind. */
static bool is_link_control(struct __sk_buff *skb)
{
	return false;
}

static bool is_link_local(const struct addr *addr)
{
	return false;
}

/* The address of the node on a device: all zeroes where there is none. */
static const struct addr *node_address(struct device *device)
{
	return &device->addr;
}

static u8 fragment_protocol(struct flow *flow)
{
	return flow->protocol;
}

/* Reads the header at `at` into flow->packet. */
static bool read_ip(struct __sk_buff *skb, struct flow *flow, u32 at)
{
	struct iphdr *ip = &flow->ip.v4;
	struct packet *packet = &flow->packet;
	if (bpf_skb_load_bytes(skb, at, ip, sizeof(*ip)))
		return refuse(flow, REASON_MALFORMED);
	if (ip->version != 4 || ip->ihl < 5)
		return refuse(flow, REASON_MALFORMED);
	u16 fragment = ntohs(ip->frag_off);
	packet->fragment = fragment & IP_MORE_FRAGMENTS ? FRAGMENT_FIRST : FRAGMENT_NONE;
	if (fragment & IP_OFFSET_MASK)
		packet->fragment = FRAGMENT_LATER;
	packet->fragment_id = ip->id;
	set_v4(&packet->source, ip->saddr);
	set_v4(&packet->destination, ip->daddr);
	packet->protocol = ip->protocol;
	packet->ttl = ip->ttl;
	packet->tos = ip->tos;
	packet->l4 = at + ip->ihl * 4;
	packet->total = ntohs(ip->tot_len);
	return true;
}

/* Reads a header without options, of no fragment, from the linear part; what must be read otherwise is refused without
 * a reason. flow->total is what the header says. */
static bool read_plain_ip(struct __sk_buff *skb, struct flow *flow)
{
	struct iphdr *ip = (void *)(long)skb->data + IP_AT;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return false;
	if (*(u8 *)ip != 0x45 || ip->frag_off & htons(IP_MORE_FRAGMENTS | IP_OFFSET_MASK))
		return false;
	set_v4(&flow->source, ip->saddr);
	set_v4(&flow->destination, ip->daddr);
	flow->protocol = ip->protocol;
	flow->ttl = ip->ttl;
	flow->tos = ip->tos;
	flow->total = ntohs(ip->tot_len);
	return true;
}

/* As ip_decrease_ttl() of the kernel does it. TTL and checksum stand beside each other, and are stored at once. */
static bool lower_ttl(struct __sk_buff *skb, struct flow *flow)
{
	struct {
		u8 ttl;
		u8 protocol;
		u16 checksum;
	} part;
	u32 at = IP_AT + offsetof(struct iphdr, ttl);
	if (bpf_skb_load_bytes(skb, at, &part, sizeof(part)))
		return refuse(flow, REASON_MALFORMED);
	u32 sum = part.checksum + htons(0x0100);
	part.checksum = sum + (sum >= 0xffff);
	part.ttl--;
	return !bpf_skb_store_bytes(skb, at, &part, sizeof(part), 0) || refuse(flow, REASON_MALFORMED);
}

/* Whether the transport checksum of this protocol covers the packet's addresses. */
static bool is_summed_with_addresses(u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

/* What a pair of addresses in place of another one adds to a sum of both. */
static u32 sum_change(const struct addr *old, const struct addr *new)
{
	u64 sum = (u64)~old[0].w[3] + new[0].w[3] + (u64)~old[1].w[3] + new[1].w[3];
	sum = (u32)sum + (sum >> 32);
	return (u32)sum + (sum >> 32);
}

static bool store_pair(struct __sk_buff *skb, struct flow *flow, u32 at, const struct addr *pair, u32 change)
{
	__be32 stored[2] = {pair[0].w[3], pair[1].w[3]};
	if (bpf_l3_csum_replace(skb, at + offsetof(struct iphdr, check), 0, change, 0))
		return refuse(flow, REASON_MALFORMED);
	return !bpf_skb_store_bytes(skb, at + offsetof(struct iphdr, saddr), stored, sizeof(stored), 0) ||
	       refuse(flow, REASON_MALFORMED);
}

/* Source and destination into the packet's header. What they change there cancels out in the sum of the packet. */
static bool store_addresses(struct __sk_buff *skb, struct flow *flow, const struct addr *pair, u32 change)
{
	return store_pair(skb, flow, IP_AT, pair, change);
}

/* The same in the header that an ICMP error quotes. It cancels out against that header's own checksum. */
static bool store_quoted_addresses(struct __sk_buff *skb, struct flow *flow, const struct addr *pair, u32 change)
{
	return store_pair(skb, flow, flow->quoted, pair, change);
}

static void fill_route_addresses(struct flow *flow)
{
	flow->route.tos = flow->tos;
	flow->route.ipv4_src = flow->source.w[3];
	flow->route.ipv4_dst = flow->destination.w[3];
}

/* The header of an answer to the packet, with `length` bytes behind it. */
static void fill_answer_ip(struct flow *flow, u8 protocol, u8 tos, u16 length)
{
	struct iphdr *ip = &flow->answer.ip.v4;
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = htons(IP_HEADER + length);
	ip->ttl = ANSWER_TTL;
	ip->protocol = protocol;
	ip->saddr = flow->destination.w[3];
	ip->daddr = flow->source.w[3];
	ip->check = checksum(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

/* What an answer's transport checksum covers of its header. */
static u32 sum_answer_ip(struct flow *flow, u8 protocol, u16 length)
{
	struct pseudo_v4 *pseudo = &flow->answer.pseudo.v4;
	pseudo->source = flow->answer.ip.v4.saddr;
	pseudo->destination = flow->answer.ip.v4.daddr;
	pseudo->protocol = htons(protocol);
	pseudo->length = htons(length);
	return bpf_csum_diff(NULL, 0, (__be32 *)pseudo, sizeof(*pseudo), 0);
}

/* ICMP's checksum covers no address. */
static u32 sum_answer_icmp(struct flow *flow, u16 length)
{
	return 0;
}
