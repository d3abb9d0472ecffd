/* From the frame to struct flow. Reads through bpf_skb_load_bytes, so it does not matter what is linear. */
#pragma once

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10

/* Whether TCP with these flags says of itself that it opens a connection. */
static bool opens_tcp(u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Whether the packet is of the family that these programs are for. */
static bool is_ours(struct __sk_buff *skb)
{
	return skb->protocol == htons(ETH_P_FAMILY) && !skb->vlan_present;
}

/* Addresses and lengths, nothing of the transport header. */
static bool parse_ip(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	if (!read_ip(skb, flow, IP_AT))
		return false;
	flow->source = packet->source;
	flow->destination = packet->destination;
	flow->protocol = packet->protocol;
	flow->ttl = packet->ttl;
	flow->tos = packet->tos;
	flow->fragment = packet->fragment;
	flow->fragment_id = packet->fragment_id;
	flow->l4 = packet->l4;
	/* A GSO packet of more than 64 KB has 0 there. */
	flow->total = skb->gso_size ? skb->len - IP_AT : packet->total;
	flow->length = flow->total;
	if (flow->total < flow->l4 - IP_AT || flow->total > skb->len - IP_AT)
		return refuse(flow, REASON_MALFORMED);
	return true;
}

static bool has_ports(u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* Ports out of the first bytes of a transport header. Returns the kind. */
static u8 read_ports(u8 protocol, u8 *header, __be16 *source_port, __be16 *destination_port)
{
	*source_port = 0;
	*destination_port = 0;
	if (protocol == PROTO_ICMP) {
		if (header[0] == ICMP_ECHO_REQUEST)
			*source_port = *(__be16 *)(header + 4);
		else if (header[0] == ICMP_ECHO_REPLY)
			*destination_port = *(__be16 *)(header + 4);
		else
			return is_icmp_error(header[0]) ? KIND_ICMP_ERROR : KIND_PORTLESS;
		return KIND_ECHO;
	}
	if (!has_ports(protocol))
		return KIND_PORTLESS;
	*source_port = *(__be16 *)header;
	*destination_port = *(__be16 *)(header + 2);
	return KIND_PORTS;
}

/* The start of a transport header that has ports, or of ICMP's. */
static bool parse_ports(struct __sk_buff *skb, struct flow *flow)
{
	u8 protocol = flow->protocol;
	u32 need = protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : protocol == IPPROTO_SCTP ? SCTP_HEADER : 8;
	if (flow->total < flow->l4 - IP_AT + need)
		return refuse(flow, REASON_MALFORMED);
	/* Of TCP up to the flags. */
	if (bpf_skb_load_bytes(skb, flow->l4, flow->header, protocol == IPPROTO_TCP ? 14 : 8))
		return refuse(flow, REASON_MALFORMED);
	flow->kind = read_ports(protocol, flow->header, &flow->source_port, &flow->destination_port);
	u32 transport = 8;
	if (protocol == IPPROTO_TCP) {
		transport = (flow->header[12] >> 4) * 4;
		flow->tcp_flags = flow->header[13];
		flow->opens = opens_tcp(flow->tcp_flags);
	} else if (protocol == IPPROTO_SCTP) {
		flow->opens = is_sctp_init(skb, flow);
	}
	if (skb->gso_size)
		flow->length = flow->l4 - IP_AT + transport + skb->gso_size;
	return true;
}

/* Ports, kind and TCP flags; of later fragments as their first one had them. */
static bool parse_transport(struct __sk_buff *skb, struct flow *flow)
{
	if (flow->fragment == FRAGMENT_LATER)
		return recall_ports(flow);
	flow->kind = KIND_PORTLESS;
	if ((has_ports(flow->protocol) || flow->protocol == PROTO_ICMP) && !parse_ports(skb, flow))
		return false;
	if (flow->fragment == FRAGMENT_FIRST)
		remember_ports(flow);
	return true;
}
