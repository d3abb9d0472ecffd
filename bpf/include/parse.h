/* From the frame to struct flow. Reads through bpf_skb_load_bytes, so it does not matter what is linear. */
#pragma once

#define IP_AT ETH_HLEN
#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Addresses and lengths, nothing of the transport header. */
static bool parse_ip(struct __sk_buff *skb, struct flow *flow)
{
	struct iphdr *ip = &flow->ip;
	if (bpf_skb_load_bytes(skb, IP_AT, ip, sizeof(*ip)))
		return refuse(flow, REASON_MALFORMED);
	set_v4(&flow->source, ip->saddr);
	set_v4(&flow->destination, ip->daddr);
	flow->protocol = ip->protocol;
	flow->ttl = ip->ttl;
	flow->tos = ip->tos;
	u32 header = ip->ihl * 4;
	u32 length = ntohs(ip->tot_len);
	/* A GSO packet of more than 64 KB has 0 there. */
	if (!length && skb->gso_size)
		length = skb->len - IP_AT;
	if (ip->version != 4 || header < sizeof(*ip) || length < header || length > skb->len - IP_AT)
		return refuse(flow, REASON_MALFORMED);
	flow->l4 = IP_AT + header;
	flow->length = length;
	return true;
}

static bool is_icmp_error(u8 type)
{
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

#define ICMP_HEADER 8
#define ICMP_CHECKSUM 2
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8

/* Ports out of the first bytes of a transport header. Returns the kind. */
static u8 read_ports(u8 protocol, u8 *header, __be16 *source_port, __be16 *destination_port)
{
	*source_port = 0;
	*destination_port = 0;
	if (protocol == IPPROTO_ICMP) {
		if (header[0] == ICMP_ECHO_REQUEST)
			*source_port = *(__be16 *)(header + 4);
		else if (header[0] == ICMP_ECHO_REPLY)
			*destination_port = *(__be16 *)(header + 4);
		else
			return is_icmp_error(header[0]) ? KIND_ICMP_ERROR : KIND_PORTLESS;
		return KIND_ECHO;
	}
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_SCTP)
		return KIND_PORTLESS;
	*source_port = *(__be16 *)header;
	*destination_port = *(__be16 *)(header + 2);
	return KIND_PORTS;
}

/* Ports, kind and TCP flags; of later fragments as their first one had them. */
static bool parse_transport(struct __sk_buff *skb, struct flow *flow)
{
	u16 fragment = ntohs(flow->ip.frag_off);
	u8 protocol = flow->protocol;
	bool known = protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP ||
		     protocol == IPPROTO_SCTP;
	if (!known) {
		flow->kind = KIND_PORTLESS;
		return true;
	}
	if (fragment & IP_OFFSET_MASK) {
		return recall_ports(flow);
	}
	u32 need = protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : 8;
	if (flow->length < flow->l4 - IP_AT + need)
		return refuse(flow, REASON_MALFORMED);
	if (bpf_skb_load_bytes(skb, flow->l4, flow->header, 8))
		return refuse(flow, REASON_MALFORMED);
	flow->kind = read_ports(protocol, flow->header, &flow->source_port, &flow->destination_port);
	u32 transport = 8;
	if (protocol == IPPROTO_TCP) {
		/* Data offset and flags. */
		if (bpf_skb_load_bytes(skb, flow->l4 + 12, flow->header + 12, 2))
			return refuse(flow, REASON_MALFORMED);
		transport = (flow->header[12] >> 4) * 4;
		flow->tcp_flags = flow->header[13];
	}
	if (skb->gso_size)
		flow->length = flow->l4 - IP_AT + transport + skb->gso_size;
	if (fragment & IP_MORE_FRAGMENTS)
		remember_ports(flow);
	return true;
}

/* Neighbour discovery and multicast listener reports, which never leave the link. Everything else of IPv6 is off. */
static bool is_ipv6_control(struct __sk_buff *skb)
{
	struct {
		u8 head[6];
		u8 next;
		u8 hop_limit;
		u8 addresses[32];
		u8 type;
	} packet;
	u8 option[9];
	if (bpf_skb_load_bytes(skb, IP_AT, &packet, sizeof(packet)))
		return false;
	if (packet.next == IPPROTO_ICMPV6)
		return packet.hop_limit == 255 && packet.type >= 133 && packet.type <= 137;
	/* Listener reports come behind a hop-by-hop header of eight bytes. */
	if (packet.next != 0 || bpf_skb_load_bytes(skb, IP_AT + 40, option, sizeof(option)))
		return false;
	if (option[0] != IPPROTO_ICMPV6 || option[1] != 0)
		return false;
	u8 type = option[8];
	return packet.addresses[16] == 0xff && packet.addresses[17] == 0x02 &&
	       ((type >= 130 && type <= 132) || type == 143);
}
