/* Telling a client of a Service at once that nobody answers there: TCP by RST, the others by ICMP port unreachable, as
 * kube-proxy's REJECT does. The packet itself becomes the answer and goes back to where it came from. */
#pragma once

#define ETH_AT 0
#define ANSWER_TTL 64
#define ICMP_DEST_UNREACH 3
#define ICMP_PORT_UNREACH 3
#define ICMP_TOS 0xc0 /* internetwork control, as the kernel marks its ICMP errors */
/* Of the refused packet's transport header an ICMP error quotes this much. SCTP's checksum must be in it. */
#define QUOTED 8
#define QUOTED_SCTP 12

static u16 checksum(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Nobody is told of packets that only a part of a Service's address or port is in, nor of answers themselves. */
static bool is_answerable(struct flow *flow)
{
	if (flow->reason != REASON_NO_BACKEND && flow->reason != REASON_NO_SERVICE_PORT)
		return false;
	return flow->kind == KIND_PORTS && flow->fragment != FRAGMENT_LATER && !(flow->tcp_flags & TCP_RST);
}

static bool swap_macs(struct __sk_buff *skb, struct flow *flow)
{
	if (bpf_skb_load_bytes(skb, ETH_AT, flow->header, 12))
		return false;
	return !bpf_skb_store_bytes(skb, ETH_AT, flow->header + 6, 6, 0) &&
	       !bpf_skb_store_bytes(skb, ETH_AT + 6, flow->header, 6, 0);
}

static void fill_answer_ip(struct flow *flow, u8 protocol, u8 tos, u16 length)
{
	struct iphdr *ip = &flow->answer.ip;
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = htons(length);
	ip->ttl = ANSWER_TTL;
	ip->protocol = protocol;
	ip->saddr = flow->destination.w[3];
	ip->daddr = flow->source.w[3];
	ip->check = checksum(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

/* RFC 9293, 3.10.7.1: what a closed port answers to a segment. */
static void fill_reset(struct flow *flow, struct tcphdr *from, u32 length)
{
	struct tcphdr *tcp = &flow->answer.tcp;
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = flow->destination_port;
	tcp->dest = flow->source_port;
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	if (from->ack) {
		tcp->seq = from->ack_seq;
	} else {
		tcp->ack = 1;
		tcp->ack_seq = htonl(ntohl(from->seq) + length + from->syn + from->fin);
	}
	struct pseudo_header *pseudo = &flow->answer.pseudo;
	pseudo->source = flow->answer.ip.saddr;
	pseudo->destination = flow->answer.ip.daddr;
	pseudo->protocol = htons(IPPROTO_TCP);
	pseudo->length = htons(sizeof(*tcp));
	u32 sum = bpf_csum_diff(NULL, 0, (__be32 *)pseudo, sizeof(*pseudo), 0);
	tcp->check = checksum(bpf_csum_diff(NULL, 0, (__be32 *)tcp, sizeof(*tcp), sum));
}

static bool become_reset(struct __sk_buff *skb, struct flow *flow)
{
	struct tcphdr *from = &flow->answer.refused;
	if (bpf_skb_load_bytes(skb, flow->l4, from, sizeof(*from)))
		return false;
	u32 headers = flow->l4 - IP_AT + from->doff * 4;
	u32 length = ntohs(flow->ip.tot_len) - headers;
	fill_answer_ip(flow, IPPROTO_TCP, 0, sizeof(struct iphdr) + sizeof(struct tcphdr));
	fill_reset(flow, from, length);
	if (bpf_skb_change_tail(skb, IP_AT + sizeof(struct iphdr) + sizeof(struct tcphdr), 0))
		return false;
	return !bpf_skb_store_bytes(skb, IP_AT, &flow->answer.ip, sizeof(struct iphdr), 0) &&
	       !bpf_skb_store_bytes(skb, IP_AT + sizeof(struct iphdr), &flow->answer.tcp, sizeof(struct tcphdr), 0);
}

static bool become_unreachable(struct __sk_buff *skb, struct flow *flow)
{
	u32 quoted = sizeof(struct iphdr) + (flow->protocol == IPPROTO_SCTP ? QUOTED_SCTP : QUOTED);
	/* Options would make the quoted header longer; who sends them waits. */
	if (flow->l4 != IP_AT + sizeof(struct iphdr))
		return false;
	struct icmp_header *icmp = &flow->answer.icmp;
	__builtin_memset(icmp, 0, sizeof(*icmp));
	icmp->type = ICMP_DEST_UNREACH;
	icmp->code = ICMP_PORT_UNREACH;
	__builtin_memset(flow->answer.quoted, 0, sizeof(flow->answer.quoted));
	if (quoted == sizeof(flow->answer.quoted)) {
		if (bpf_skb_load_bytes(skb, IP_AT, flow->answer.quoted, sizeof(flow->answer.quoted)))
			return false;
	} else if (bpf_skb_load_bytes(skb, IP_AT, flow->answer.quoted, sizeof(struct iphdr) + QUOTED)) {
		return false;
	}
	/* The zeroes after a shorter quotation add nothing. */
	u32 sum = bpf_csum_diff(NULL, 0, (__be32 *)icmp, sizeof(*icmp), 0);
	icmp->checksum = checksum(bpf_csum_diff(NULL, 0, (__be32 *)flow->answer.quoted, sizeof(flow->answer.quoted), sum));
	u32 added = sizeof(struct iphdr) + sizeof(*icmp);
	fill_answer_ip(flow, IPPROTO_ICMP, ICMP_TOS, added + quoted);
	if (bpf_skb_change_tail(skb, IP_AT + quoted, 0) || bpf_skb_adjust_room(skb, added, BPF_ADJ_ROOM_MAC, 0))
		return false;
	return !bpf_skb_store_bytes(skb, IP_AT, &flow->answer.ip, sizeof(struct iphdr), 0) &&
	       !bpf_skb_store_bytes(skb, IP_AT + sizeof(struct iphdr), icmp, sizeof(*icmp), 0);
}

/* The end of a packet that a Service refuses. */
static int answer(struct __sk_buff *skb, struct flow *flow, bool to_pod)
{
	count(flow->reason, skb->len);
	tell_drop(skb, flow, flow->reason);
	bool made = flow->protocol == IPPROTO_TCP ? become_reset(skb, flow) : become_unreachable(skb, flow);
	if (!made || !swap_macs(skb, flow))
		return TC_ACT_SHOT;
	return to_pod ? bpf_redirect_peer(skb->ifindex, 0) : bpf_redirect(skb->ifindex, 0);
}
