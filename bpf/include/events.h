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

/* The same with the ends of the connection, whichever way the packet goes. */
static void fill_connection_event(struct event *event, struct __sk_buff *skb, struct flow *flow, u8 reason)
{
	fill_event(event, skb, flow, reason);
	event->source = flow->initiator;
	event->destination = flow->responder;
	event->source_port = flow->initiator_port;
	event->destination_port = flow->responder_port;
	event->source_identity = identity_of(&flow->initiator);
	event->destination_identity = identity_of(&flow->responder);
}

static void tell_drop(struct __sk_buff *skb, struct flow *flow, u8 reason)
{
	if (!(setting(SETTING_MONITOR) & MONITOR_DROPS))
		return;
	struct event *event = events_drops.ringbuf_reserve(sizeof(struct event));
	if (!event) {
		count_lost(LOST_DROPS);
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
		count_lost(LOST_DROPS);
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
		count_lost(LOST_VERDICTS);
		return;
	}
	fill_connection_event(event, skb, flow, reason);
	events_verdicts.ringbuf_submit(event, 0);
}

/* Whether the log takes one more record in this second. Two CPUs at once may get one each where one is left. */
static bool take_record(u32 lost)
{
	u32 zero = 0;
	u64 now = seconds();
	struct log_budget *budget = log_budget.lookup(&zero);
	if (!budget)
		return false;
	if (budget->second != now) {
		budget->second = now;
		budget->used = 0;
	}
	if (budget->used >= LOG_RATE) {
		count_lost(lost);
		return false;
	}
	__sync_fetch_and_add(&budget->used, 1);
	return true;
}

static bool logs(u32 all, u32 marked, bool is_marked)
{
	u32 asked = setting(SETTING_LOG);
	return asked & all || (asked & marked && is_marked);
}

/* A connection that has just been opened, to the log, for each subject whose policies were asked. What some of them
 * deny, and audit lets pass, nobody has allowed. */
static void log_allowed_connection(struct __sk_buff *skb, struct flow *flow)
{
	if (flow->audited)
		return;
	LOOP for (int direction = DIRECTION_EGRESS; direction >= DIRECTION_INGRESS; direction--) {
		if (!flow->logged[direction & 1] || !take_record(LOST_ALLOWED))
			continue;
		struct event *event = log_allowed.ringbuf_reserve(sizeof(struct event));
		if (!event) {
			count_lost(LOST_ALLOWED);
			continue;
		}
		fill_connection_event(event, skb, flow, REASON_FORWARDED);
		event->direction = direction;
		event->policy = flow->policies[direction & 1];
		log_allowed.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	}
}

/* A packet that the policies of the subject judged last deny, to the log: a record for the first one of its kind in this
 * round, a number for the others. `audited`: it passes. */
static void log_denied_packet(struct flow *flow, bool audited)
{
	u32 lost = audited ? LOST_AUDITED : LOST_DENIED;
	if (!audited && !logs(LOG_DENIED, LOG_DENIED_MARKED, flow->subject_flags & SUBJECT_LOG))
		return;
	struct denied_key *key = &flow->denied_key;
	__builtin_memset(key, 0, sizeof(*key));
	key->initiator = flow->initiator;
	key->responder = flow->responder;
	key->policy = flow->policy;
	key->round = setting(SETTING_LOG_ROUND);
	key->responder_port = flow->responder_port;
	key->protocol = flow->protocol;
	key->direction = flow->direction;
	key->audited = audited;
	struct denied *known = log_denied.lookup(key);
	if (!known) {
		if (!take_record(lost))
			return;
		struct denied *fresh = &flow->denied;
		fresh->count = 0;
		fresh->time = bpf_ktime_get_ns();
		fresh->initiator_identity = identity_of(&flow->initiator);
		fresh->responder_identity = identity_of(&flow->responder);
		/* Fails also where another CPU was faster: then its entry counts. */
		log_denied.insert(key, fresh);
		known = log_denied.lookup(key);
	}
	if (known)
		__sync_fetch_and_add(&known->count, 1);
	else
		count_lost(lost);
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
