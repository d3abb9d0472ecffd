/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What the programs are measured with.
 *
 * A program changes the packet that it sees, and bpf_prog_test_run() gives it the
 * same one again: `restore` makes it what it was, and goes on with the program in `measured`. */
#define BPF_LICENSE GPL

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#define PACKET_HOST 0
#define HEADERS_V4 54 /* Ethernet, IPv4, TCP */
#define HEADERS_V6 74
#define FIRST_PORT 1024
#define PORTS 60000

struct frame {
	u32 length; /* of the frame, with what comes after the headers */
	u32 port_at; /* offset of the source port, if each run is to be another connection; else 0 */
	u32 next;
	u8 headers[HEADERS_V6];
	u8 pad[2];
};

struct key {
	u32 words[4];
};

BPF_ARRAY(frames, struct frame, 1);
BPF_PROG_ARRAY(measured, 1);
BPF_HASH(known, struct key, u64, 1024);
BPF_ARRAY(peers, u32, 64);

int restore(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct frame *frame = frames.lookup(&zero);
	if (!frame)
		return TC_ACT_SHOT;
	skb->mark = 0;
	/* As for the device that it is said to have come in by: it is given to another one. */
	bpf_skb_change_type(skb, PACKET_HOST);
	if (skb->len != frame->length)
		bpf_skb_change_tail(skb, frame->length, 0);
	if (skb->protocol == __builtin_bswap16(ETH_P_IPV6))
		bpf_skb_store_bytes(skb, 0, frame->headers, HEADERS_V6, 0);
	else
		bpf_skb_store_bytes(skb, 0, frame->headers, HEADERS_V4, 0);
	if (frame->port_at) {
		u16 port = __builtin_bswap16(FIRST_PORT + frame->next++ % PORTS);
		bpf_skb_store_bytes(skb, frame->port_at, &port, sizeof(port), 0);
	}
	measured.call(skb, 0);
	return TC_ACT_SHOT;
}

int nothing(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

/* As nothing(), and looks up an address that is there. */
int one_lookup(struct __sk_buff *skb)
{
	struct key key = {};
	u64 *value = known.lookup(&key);
	return value ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

/* The least that a program can do for pods of one node: device -> the device of the other one. */
int bare(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	u32 *peer = peers.lookup(&ifindex);
	if (!peer || !*peer || skb->protocol != __builtin_bswap16(ETH_P_IP))
		return TC_ACT_UNSPEC;
	return bpf_redirect_peer(*peer, 0);
}
