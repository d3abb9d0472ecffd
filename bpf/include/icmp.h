/* ICMP errors: passed where the packet that they quote belongs to a connection that is allowed. */
#pragma once

/* Reads the quoted packet's ends into flow->translation_key, as client = quoted source, vip = quoted destination. */
static bool read_quoted(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	flow->quoted = flow->l4 + ICMP_HEADER;
	if (!read_ip(skb, flow, flow->quoted))
		return false;
	/* Only errors about first fragments are ever sent (RFC 1122, 3.2.2). */
	if (packet->fragment == FRAGMENT_LATER)
		return refuse(flow, REASON_ICMP_UNRELATED);
	flow->quoted_l4 = packet->l4;
	if (bpf_skb_load_bytes(skb, flow->quoted_l4, flow->header, 8))
		return refuse(flow, REASON_MALFORMED);
	struct translation_key *quoted = &flow->translation_key;
	quoted->client = packet->source;
	quoted->vip = packet->destination;
	quoted->protocol = packet->protocol;
	u8 kind = read_ports(packet->protocol, flow->header, &quoted->client_port, &quoted->vip_port);
	struct ends *wire = &flow->quoted_wire;
	wire->source = quoted->client;
	wire->destination = quoted->vip;
	wire->source_port = quoted->client_port;
	wire->destination_port = quoted->vip_port;
	return kind != KIND_ICMP_ERROR || refuse(flow, REASON_ICMP_UNRELATED);
}

/* What the quoted packet went to as a Service's client's: sets flow->translation. */
static bool find_translation(struct flow *flow)
{
	struct translation_key *key = &flow->translation_key, quoted = *key;
	key->client = quoted.vip;
	key->client_port = quoted.vip_port;
	key->vip = quoted.client;
	key->vip_port = quoted.client_port;
	struct translation *known = translations.lookup(key);
	*key = quoted;
	if (!known || known->slot == SLOT_STACK)
		return false;
	flow->translation = *known;
	return true;
}

/* An error of a Service's client about a packet that came from the Service's address, as it believes: the backend,
 * which it is for, knows neither that address nor that port. */
static void translate_error(struct flow *flow)
{
	struct translation *known = &flow->translation;
	if (!same_addr(&flow->translation_key.client, &flow->destination) || !find_translation(flow))
		return;
	set_quoted_source(flow, &known->backend, known->backend_port);
	set_destination_address(flow, &known->backend);
}

/* Whether the quoted packet's connection exists and is allowed. Sets flow->nat_reply as track() does: here it means
 * that the quoted packet went to the backend of a Service, and the error goes to the Service's client; and as_node: it
 * came to the node's address for a pod, and the error goes to the one who sent it. */
static bool relate(struct flow *flow)
{
	struct translation_key *quoted = &flow->translation_key;
	u64 now = seconds();
	/* An error is for whom the quoted packet came from. */
	if (!same_addr(&quoted->client, &flow->destination))
		return refuse(flow, REASON_ICMP_UNRELATED);
	set_tuple(flow, &quoted->client, quoted->client_port, &quoted->vip, quoted->vip_port, quoted->protocol);
	struct connection *connection = connections.lookup(&flow->tuple);
	if (!connection || connection->expires <= now)
		connection = connections_new.lookup(&flow->tuple);
	if (!connection || connection->expires <= now)
		return refuse(flow, REASON_ICMP_UNRELATED);
	/* One that must be judged anew is, with its own next packet. */
	if (connection->generation != flow->generation && !flow->judged)
		return refuse(flow, REASON_ICMP_UNRELATED);
	if (connection->flags & CONN_NAT && !is_reply(flow, connection)) {
		flow->nat_reply = true;
		flow->vip = connection->vip;
		flow->vip_port = connection->vip_port;
	}
	flow->as_node = connection->flags & CONN_AS_NODE && is_reply(flow, connection);
	return true;
}

/* Gives the client of a Service an error about what it knows: its packet to the Service. */
static void untranslate_error(struct flow *flow)
{
	if (same_addr(&flow->source, &flow->translation_key.vip))
		set_source_address(flow, &flow->vip);
	set_quoted_destination(flow, &flow->vip, flow->vip_port);
}
