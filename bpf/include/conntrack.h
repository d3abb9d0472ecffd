/* Connections. A packet of a known one, allowed by the current policy generation, costs one lookup.
 *
 * New connections live in connections_new until the responder has answered (TCP: until the handshake is through, so
 * that answered SYNs alone fill nothing), then move to connections: a flood of new ones evicts no live one. Where one
 * of the same ends has been live, the new one takes its entry.
 *
 * A packet that belongs to no known connection opens one in its own direction, if the policy allows, even in the middle
 * of a TCP stream: so streams survive the loss of these maps. A connection that is not allowed any more keeps its
 * entry, with the old generation: each of its packets is judged as what it is, never as a new one of the other side's. */
#pragma once

/* Seconds. The established one is what kube-proxy asks of nf_conntrack; the others are about nf_conntrack's own. */
#define LIFETIME_TCP_NEW 60
#define LIFETIME_TCP_ESTABLISHED 86400
#define LIFETIME_TCP_HALF_CLOSED 3600
#define LIFETIME_TCP_CLOSED 30
#define LIFETIME_TCP_RESET 10
#define LIFETIME_UDP_NEW 30
#define LIFETIME_UDP 180
#define LIFETIME_ICMP 30
#define LIFETIME_OTHER_NEW 60
#define LIFETIME_OTHER 600

/* An entry that has not been used for so long does not stand against a new connection of the same ends: it may be of a
 * client that has gone without a word. */
#define HOLDS 300

#define CONN_FIN_BOTH (CONN_FIN_ORIGINAL | CONN_FIN_REPLY)

/* `live`: answered, and for TCP through the handshake. */
static u32 lifetime(u8 protocol, u32 flags, bool live)
{
	switch (protocol) {
	case IPPROTO_TCP:
		if (flags & CONN_RST)
			return LIFETIME_TCP_RESET;
		if ((flags & CONN_FIN_BOTH) == CONN_FIN_BOTH)
			return LIFETIME_TCP_CLOSED;
		if (!live)
			return LIFETIME_TCP_NEW;
		return flags & CONN_FIN_BOTH ? LIFETIME_TCP_HALF_CLOSED : LIFETIME_TCP_ESTABLISHED;
	case IPPROTO_UDP:
		return live ? LIFETIME_UDP : LIFETIME_UDP_NEW;
	case PROTO_ICMP:
		return LIFETIME_ICMP;
	default:
		return live ? LIFETIME_OTHER : LIFETIME_OTHER_NEW;
	}
}

/* 1 where (b, b_port) stands before (a, a_port), else 0: the borrow of b - a, word by word from the lowest. */
static u64 stands_after(const struct addr *a, __be16 a_port, const struct addr *b, __be16 b_port)
{
	u64 borrow = ((u64)ntohs(b_port) - ntohs(a_port)) >> 63;
	borrow = ((u64)ntohl(b->w[3]) - ntohl(a->w[3]) - borrow) >> 63;
	borrow = ((u64)ntohl(b->w[2]) - ntohl(a->w[2]) - borrow) >> 63;
	borrow = ((u64)ntohl(b->w[1]) - ntohl(a->w[1]) - borrow) >> 63;
	return ((u64)ntohl(b->w[0]) - ntohl(a->w[0]) - borrow) >> 63;
}

/* Sets flow->tuple and swapped for a packet with these ends. */
static void set_tuple(struct flow *flow, const struct addr *source, __be16 source_port,
		      const struct addr *destination, __be16 destination_port, u8 protocol)
{
	struct tuple *tuple = &flow->tuple;
	flow->swapped = stands_after(source, source_port, destination, destination_port);
	if (flow->swapped) {
		tuple->a = *destination;
		tuple->a_port = destination_port;
		tuple->b = *source;
		tuple->b_port = source_port;
	} else {
		tuple->a = *source;
		tuple->a_port = source_port;
		tuple->b = *destination;
		tuple->b_port = destination_port;
	}
	tuple->protocol = protocol;
}

/* Whether the packet goes from the responder to the initiator. */
static bool is_reply(struct flow *flow, struct connection *connection)
{
	return !!(connection->flags & CONN_SWAPPED) != flow->swapped;
}

/* Whether the entry still stands for the packet's connection, and not for an earlier one of the same ends. */
static bool is_alive(struct flow *flow, struct connection *connection, u64 now)
{
	if (connection->expires <= now)
		return false;
	if (!flow->opens)
		return true;
	u32 flags = connection->flags;
	if (flags & CONN_RST || (flags & CONN_FIN_BOTH) == CONN_FIN_BOTH)
		return false;
	return connection->expires + HOLDS > now + lifetime(flow->protocol, flags, flags & CONN_LIVE);
}

/* Whether the connection has been answered, by this packet at the latest; of TCP, whether the handshake is through. */
static bool is_through(struct flow *flow, u32 flags)
{
	return flags & CONN_REPLIED && !(flags & CONN_RST) && !(flow->tcp_flags & TCP_SYN);
}

/* Notes what the packet does to the connection, and returns whether that is live now. Entries are written at most once
 * a second for their lifetime. */
static bool touch(struct flow *flow, struct connection *connection, bool reply, u64 now)
{
	u32 flags = connection->flags;
	if (reply)
		flags |= CONN_REPLIED;
	if (flow->tcp_flags & TCP_FIN)
		flags |= reply ? CONN_FIN_REPLY : CONN_FIN_ORIGINAL;
	if (flow->tcp_flags & TCP_RST)
		flags |= CONN_RST;
	if (is_through(flow, flags))
		flags |= CONN_LIVE;
	if (flags != connection->flags)
		connection->flags = flags;
	bool live = flags & CONN_LIVE;
	u64 expires = now + lifetime(flow->protocol, flags, live);
	if (expires != connection->expires)
		connection->expires = expires;
	return live;
}

/* Where an end of the connection is: 0, the initiator; 1, the responder. */
static u32 *side_of(struct connection *connection, u32 end)
{
	OPAQUE(end);
	return &connection->ifindex[end & 1];
}

/* The connection has been judged: its entry and where its ends are hold until the next generation. */
static void vouch(struct flow *flow, struct connection *connection)
{
	*side_of(connection, flow->reply) = flow->sides[0];
	*side_of(connection, !flow->reply) = flow->sides[1];
	/* What is not complete is not vouched for. */
	FORGET();
	connection->generation = flow->generation;
}

static bool open_connection(struct flow *flow, u64 now)
{
	struct connection *fresh = &flow->fresh;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	fresh->flags = flow->swapped ? CONN_SWAPPED : 0;
	if (flow->from_node)
		fresh->flags |= CONN_FROM_NODE;
	if (flow->vip_known) {
		fresh->flags |= CONN_NAT;
		fresh->vip = flow->vip;
		fresh->vip_port = flow->vip_port;
		fresh->service = flow->service;
	}
	flow->as_node = opens_as_node(flow);
	if (flow->as_node)
		fresh->flags |= CONN_AS_NODE;
	vouch(flow, fresh);
	touch(flow, fresh, false, now);
	struct connection *ended = flow->ended ? connections.lookup(&flow->tuple) : NULL;
	if (ended) {
		*ended = *fresh;
		return true;
	}
	return !connections_new.update(&flow->tuple, fresh) || refuse(flow, REASON_MAP_FULL);
}

/* Whether the packet's sender addresses the backend by another VIP than the entry says, or by none: it uses one port
 * towards both, or our entry was lost and the backend's packet made this one. What is addressed last holds, but nothing
 * that opens a connection beside one that lives: its sender tries again. */
static bool is_addressed_otherwise(struct flow *flow, struct connection *connection)
{
	bool nat = connection->flags & CONN_NAT;
	if (!flow->vip_known)
		return nat && !flow->judged && !is_reply(flow, connection);
	return !nat || connection->vip_port != flow->vip_port || !same_addr(&connection->vip, &flow->vip);
}

/* The entry of flow->tuple that stands for the packet's connection, if there is one. Sets flow->is_new and ended. */
static struct connection *find_connection(struct flow *flow, u64 now)
{
	struct connection *connection = connections.lookup(&flow->tuple);
	flow->is_new = !connection;
	flow->ended = connection && !is_alive(flow, connection, now);
	if (connection)
		return flow->ended ? NULL : connection;
	connection = connections_new.lookup(&flow->tuple);
	return connection && is_alive(flow, connection, now) ? connection : NULL;
}

/* From now on no flood of others takes the entry away. */
static void keep(struct flow *flow, struct connection *connection)
{
	connections.update(&flow->tuple, connection);
	connections_new.delete(&flow->tuple);
}

/* Judges a packet that no entry vouches for. What was found is looked up again afterwards: the verifier walks the
 * judge once for every difference in what is known before it. */
static bool judge_packet(struct __sk_buff *skb, struct flow *flow)
{
	bool reply = flow->reply;
	flow->initiator = reply ? flow->destination : flow->source;
	flow->responder = reply ? flow->source : flow->destination;
	flow->initiator_port = reply ? flow->destination_port : flow->source_port;
	flow->responder_port = reply ? flow->source_port : flow->destination_port;
	return judge(skb, flow);
}

/* Finds or opens the packet's connection and judges it where needed. Sets flow->as_node, and flow->nat_reply with vip,
 * vip_port. */
static bool track(struct __sk_buff *skb, struct flow *flow)
{
	u64 now = seconds();
	set_tuple(flow, &flow->source, flow->source_port, &flow->destination, flow->destination_port, flow->protocol);
	struct connection *connection = find_connection(flow, now);
	if (connection && is_addressed_otherwise(flow, connection)) {
		if (flow->opens)
			return refuse(flow, REASON_TRANSLATION_CLASH);
		flow->ended = !flow->is_new;
		connection = NULL;
	}
	flow->known = connection != NULL;
	if (connection) {
		flow->reply = is_reply(flow, connection);
		flow->from_node = !!(connection->flags & CONN_FROM_NODE);
		flow->as_node = connection->flags & CONN_AS_NODE && !flow->reply;
		if (flow->reply && connection->flags & CONN_NAT) {
			flow->nat_reply = true;
			flow->vip = connection->vip;
			flow->vip_port = connection->vip_port;
		}
	}
	if (flow->judged)
		return true;
	if (!connection || connection->generation != flow->generation) {
		if (!judge_packet(skb, flow))
			return false;
		if (!flow->known) {
			if (!open_connection(flow, now))
				return false;
			log_allowed_connection(skb, flow);
			return true;
		}
		connection = flow->is_new ? connections_new.lookup(&flow->tuple) : connections.lookup(&flow->tuple);
		if (!connection)
			return true;
		vouch(flow, connection);
	}
	if (touch(flow, connection, flow->reply, now) && flow->is_new)
		keep(flow, connection);
	return true;
}
