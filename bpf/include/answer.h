/* Telling a client of a Service at once that nobody answers there: TCP by RST, the others by ICMP port unreachable, as
 * kube-proxy's REJECT does; and either side that a packet cannot go on, where the stack does not see it. The packet
 * itself becomes the answer and goes back to where it came from. */
#pragma once

#define ETH_AT 0

static bool is_refused(struct flow *flow)
{
	return flow->reason == REASON_NO_BACKEND || flow->reason == REASON_NO_SERVICE_PORT;
}

/* Nobody is told of packets that only a part of an address or port is in, nor of answers themselves. */
static bool is_answerable(struct flow *flow)
{
	if (flow->kind != KIND_PORTS || flow->fragment == FRAGMENT_LATER)
		return false;
	if (is_refused(flow))
		return !(flow->tcp_flags & TCP_RST);
	return flow->reason == REASON_TTL || flow->reason == REASON_TOO_BIG;
}

static bool swap_macs(struct __sk_buff *skb, struct flow *flow)
{
	if (bpf_skb_load_bytes(skb, ETH_AT, flow->header, 12))
		return false;
	return !bpf_skb_store_bytes(skb, ETH_AT, flow->header + 6, 6, 0) &&
	       !bpf_skb_store_bytes(skb, ETH_AT + 6, flow->header, 6, 0);
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
	u32 sum = sum_answer_ip(flow, IPPROTO_TCP, sizeof(*tcp));
	tcp->check = checksum(bpf_csum_diff(NULL, 0, (__be32 *)tcp, sizeof(*tcp), sum));
}

static bool become_reset(struct __sk_buff *skb, struct flow *flow)
{
	struct tcphdr *from = &flow->answer.refused;
	if (bpf_skb_load_bytes(skb, flow->l4, from, sizeof(*from)))
		return false;
	fill_answer_ip(flow, IPPROTO_TCP, 0, sizeof(struct tcphdr));
	fill_reset(flow, from, flow->total - (flow->l4 - IP_AT + from->doff * 4));
	if (bpf_skb_change_tail(skb, IP_AT + IP_HEADER + sizeof(struct tcphdr), 0))
		return false;
	return !bpf_skb_store_bytes(skb, IP_AT, &flow->answer.ip, IP_HEADER, 0) &&
	       !bpf_skb_store_bytes(skb, IP_AT + IP_HEADER, &flow->answer.tcp, sizeof(struct tcphdr), 0);
}

/* What the ICMP error quotes of the packet. Zeroes after a shorter quotation add nothing to the checksum. */
static bool read_quotation(struct __sk_buff *skb, struct flow *flow)
{
	u8 *quoted = flow->answer.quoted;
	__builtin_memset(quoted, 0, sizeof(flow->answer.quoted));
	if (flow->protocol == IPPROTO_TCP)
		return !bpf_skb_load_bytes(skb, IP_AT, quoted, IP_HEADER + QUOTED_TCP);
	if (flow->protocol == IPPROTO_SCTP)
		return !bpf_skb_load_bytes(skb, IP_AT, quoted, IP_HEADER + QUOTED_SCTP);
	return !bpf_skb_load_bytes(skb, IP_AT, quoted, IP_HEADER + QUOTED);
}

static void fill_error(struct flow *flow, struct icmp_header *icmp)
{
	__builtin_memset(icmp, 0, sizeof(*icmp));
	if (flow->reason == REASON_TTL) {
		icmp->type = ICMP_TIME_EXCEEDED;
	} else if (flow->reason == REASON_TOO_BIG) {
		icmp->type = ICMP_TOO_BIG;
		icmp->code = ICMP_TOO_BIG_CODE;
		icmp->rest = htonl(flow->mtu);
	} else {
		icmp->type = ICMP_UNREACHABLE;
		icmp->code = ICMP_UNREACHABLE_PORT;
	}
}

static bool become_error(struct __sk_buff *skb, struct flow *flow)
{
	u8 protocol = flow->protocol;
	u32 quoted = IP_HEADER + (protocol == IPPROTO_TCP ? QUOTED_TCP : protocol == IPPROTO_SCTP ? QUOTED_SCTP : QUOTED);
	/* Options and extensions would make the quoted header longer; who sends them waits. */
	if (flow->l4 != IP_AT + IP_HEADER || !read_quotation(skb, flow))
		return false;
	struct icmp_header *icmp = &flow->answer.icmp;
	u32 length = sizeof(*icmp) + quoted;
	fill_error(flow, icmp);
	fill_answer_ip(flow, PROTO_ICMP, ICMP_TOS, length);
	u32 sum = bpf_csum_diff(NULL, 0, (__be32 *)icmp, sizeof(*icmp), sum_answer_icmp(flow, length));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)flow->answer.quoted, sizeof(flow->answer.quoted), sum);
	icmp->checksum = checksum(sum);
	u32 added = IP_HEADER + sizeof(*icmp);
	if (bpf_skb_change_tail(skb, IP_AT + quoted, 0) || bpf_skb_adjust_room(skb, added, BPF_ADJ_ROOM_MAC, 0))
		return false;
	return !bpf_skb_store_bytes(skb, IP_AT, &flow->answer.ip, IP_HEADER, 0) &&
	       !bpf_skb_store_bytes(skb, IP_AT + IP_HEADER, icmp, sizeof(*icmp), 0);
}

/* The end of a packet that its sender is told of. */
static int answer(struct __sk_buff *skb, struct flow *flow, bool to_pod)
{
	forget_changes(flow);
	count(flow->reason, skb->len);
	tell_drop(skb, flow, flow->reason);
	bool reset = flow->protocol == IPPROTO_TCP && is_refused(flow);
	bool made = reset ? become_reset(skb, flow) : become_error(skb, flow);
	if (!made || !swap_macs(skb, flow))
		return TC_ACT_SHOT;
	return to_pod ? bpf_redirect_peer(skb->ifindex, 0) : bpf_redirect(skb->ifindex, 0);
}
