/* Counters and events. Every drop goes through drop(). */
#pragma once

static void count(u32 reason, u32 bytes)
{
	struct counter *counter = counters.lookup(&reason);
	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

static void count_lost(u32 which)
{
	struct counter *lost = events_lost.lookup(&which);
	if (lost)
		lost->packets++;
}

static u32 identity_of(struct addr *addr)
{
	struct endpoint *endpoint = endpoints.lookup(addr);
	return endpoint ? endpoint->identity : ID_WORLD;
}

static void fill_event(struct event *event, struct __sk_buff *skb, struct flow *flow, u8 reason)
{
	event->time = bpf_ktime_get_ns();
	event->protocol = flow->protocol;
	event->direction = flow->direction;
	event->reason = reason;
	event->hook = flow->hook;
	event->ifindex = skb->ifindex;
	event->length = skb->len;
	event->policy = flow->policy;
	event->pad = 0;
}

static void tell_drop(struct __sk_buff *skb, struct flow *flow, u8 reason)
{
	if (!(setting(SETTING_MONITOR) & MONITOR_DROPS))
		return;
	struct event *event = events_drops.ringbuf_reserve(sizeof(struct event));
	if (!event) {
		count_lost(0);
		return;
	}
	fill_event(event, skb, flow, reason);
	event->source = flow->source;
	event->destination = flow->destination;
	event->source_port = flow->source_port;
	event->destination_port = flow->destination_port;
	event->source_identity = identity_of(&flow->source);
	event->destination_identity = identity_of(&flow->destination);
	events_drops.ringbuf_submit(event, 0);
}

/* What a socket hook refused: there is no packet, and the socket's own address is not known yet. */
static void tell_rejected(struct addr *destination, __be16 port, u8 protocol, u8 reason)
{
	if (!(setting(SETTING_MONITOR) & MONITOR_DROPS))
		return;
	struct event *event = events_drops.ringbuf_reserve(sizeof(struct event));
	if (!event) {
		count_lost(0);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->destination = *destination;
	event->destination_port = port;
	event->protocol = protocol;
	event->direction = DIRECTION_EGRESS;
	event->reason = reason;
	event->hook = HOOK_SOCKET;
	event->destination_identity = identity_of(destination);
	events_drops.ringbuf_submit(event, 0);
}

/* A verdict on a connection, whichever way the packet goes that caused it. */
static void tell_verdict(struct __sk_buff *skb, struct flow *flow, u8 reason)
{
	if (!(setting(SETTING_MONITOR) & MONITOR_VERDICTS))
		return;
	struct event *event = events_verdicts.ringbuf_reserve(sizeof(struct event));
	if (!event) {
		count_lost(1);
		return;
	}
	fill_event(event, skb, flow, reason);
	event->source = flow->initiator;
	event->destination = flow->responder;
	event->source_port = flow->initiator_port;
	event->destination_port = flow->responder_port;
	event->source_identity = identity_of(&flow->initiator);
	event->destination_identity = identity_of(&flow->responder);
	events_verdicts.ringbuf_submit(event, 0);
}

static int drop(struct __sk_buff *skb, struct flow *flow)
{
	count(flow->reason, skb->len);
	tell_drop(skb, flow, flow->reason);
	return TC_ACT_SHOT;
}

/* The end of every tc program. `action` is a tc action; NO_ACTION means that the packet was refused. TC_ACT_UNSPEC
 * leaves it to the next program at the hook, or to the stack; with clsact (direct action) and with tcx (which calls it
 * TCX_NEXT) alike. */
#define NO_ACTION 0x100

static int stop(struct flow *flow, u32 reason)
{
	refuse(flow, reason);
	return NO_ACTION;
}

static int finish(struct __sk_buff *skb, struct flow *flow, int action)
{
	if (action == NO_ACTION)
		return drop(skb, flow);
	/* What the stack brings back to us was counted before. */
	if (!flow->judged)
		count(REASON_FORWARDED, skb->len);
	return action;
}
