/* Only the first fragment of a packet has ports; it leaves them for the others. */
#pragma once

static void set_fragment_key(struct flow *flow)
{
	struct fragment_key *key = &flow->fragment_key;
	key->source = flow->source;
	key->destination = flow->destination;
	key->id = flow->fragment_id;
	key->protocol = fragment_protocol(flow);
}

static void remember_ports(struct flow *flow)
{
	set_fragment_key(flow);
	flow->fragment_ports.source_port = flow->source_port;
	flow->fragment_ports.destination_port = flow->destination_port;
	flow->fragment_ports.kind = flow->kind;
	flow->fragment_ports.protocol = flow->protocol;
	fragments.update(&flow->fragment_key, &flow->fragment_ports);
}

static bool recall_ports(struct flow *flow)
{
	set_fragment_key(flow);
	struct fragment_ports *first = fragments.lookup(&flow->fragment_key);
	if (!first)
		return refuse(flow, REASON_FRAGMENT_UNKNOWN);
	flow->source_port = first->source_port;
	flow->destination_port = first->destination_port;
	flow->kind = first->kind;
	flow->protocol = first->protocol;
	return true;
}
