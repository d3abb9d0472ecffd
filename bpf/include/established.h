/* Packets of connections that are known, and that nobody translates: while its generation is current, the
 * entry says where they may come from and where they go. All others, and all that is unusual about a packet, are left
 * to the long way, which comes to the same. */
#pragma once

#define PLAIN_L4 (IP_AT + IP_HEADER)
/* Of TCP, as far as the flags. */
#define PLAIN_TCP 14

static void note_sides(struct flow *flow, u32 sender, u32 receiver)
{
	flow->sides[0] = sender;
	flow->sides[1] = receiver;
}

/* What parse_ip() and parse_transport() set, for TCP and UDP that opens no connection. */
static bool read_plain(struct __sk_buff *skb, struct flow *flow)
{
	if (!read_plain_ip(skb, flow))
		return false;
	bool tcp = flow->protocol == IPPROTO_TCP;
	u8 *transport = (void *)(long)skb->data + PLAIN_L4;
	u32 need = tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	if ((!tcp && flow->protocol != IPPROTO_UDP) || (void *)transport + PLAIN_TCP > (void *)(long)skb->data_end)
		return false;
	flow->source_port = *(__be16 *)transport;
	flow->destination_port = *(__be16 *)(transport + 2);
	flow->tcp_flags = tcp ? transport[13] : 0;
	flow->kind = KIND_PORTS;
	flow->l4 = PLAIN_L4;
	if (skb->gso_size)
		flow->total = skb->len - IP_AT;
	u32 header = tcp ? (transport[12] >> 4) * 4 : sizeof(struct udphdr);
	flow->length = skb->gso_size ? IP_HEADER + header + skb->gso_size : flow->total;
	return !opens_tcp(flow->tcp_flags) && flow->total >= IP_HEADER + need && flow->total <= skb->len - IP_AT;
}

/* Whether the packet may pass, and goes to flow->ifindex, or, where that is 0, out of the node. `sender`: where it is from,
 * as in struct connection. */
static bool follow_connection(struct __sk_buff *skb, struct flow *flow, u32 sender)
{
	if (!read_plain(skb, flow))
		return false;
	set_tuple(flow, &flow->source, flow->source_port, &flow->destination, flow->destination_port, flow->protocol);
	struct connection *connection = connections.lookup(&flow->tuple);
	flow->is_new = !connection;
	/* What a handshake consists of is not pushed; all other packets that no entry knows are spared the look-up. */
	if (flow->is_new && !(flow->tcp_flags & TCP_PSH))
		connection = connections_new.lookup(&flow->tuple);
	u64 now = seconds();
	if (!connection || connection->generation != flow->generation || connection->expires <= now)
		return false;
	if (connection->flags & (CONN_NAT | CONN_AS_NODE))
		return false;
	bool reply = is_reply(flow, connection);
	u32 receiver = *side_of(connection, !reply);
	if (*side_of(connection, reply) != sender || !receiver)
		return false;
	if (touch(flow, connection, reply, now) && flow->is_new)
		keep(flow, connection);
	flow->ifindex = receiver == ELSEWHERE ? 0 : receiver;
	flow->followed = true;
	return true;
}
