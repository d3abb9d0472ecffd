/* Services: from what a client addresses to a backend. */
#pragma once

/* How many backends are tried when one clashes with a connection that exists. */
#define ATTEMPTS 4

static struct frontend *find_frontend(struct frontend_key *key, const struct addr *addr, __be16 port, u8 protocol)
{
	key->addr = *addr;
	key->port = port;
	key->protocol = protocol;
	key->pad = 0;
	return frontends.lookup(key);
}

static bool is_node(const struct addr *addr)
{
	struct addr copy = *addr;
	struct endpoint *endpoint = endpoints.lookup(&copy);
	return endpoint && endpoint->flags & (EP_OWN_NODE | EP_REMOTE_NODE);
}

/* Whether a port that no Service has at this address is to be refused. Nodes have ports of their own. */
static bool is_closed_address(struct frontend_key *key, const struct addr *addr)
{
	struct frontend *mark = find_frontend(key, addr, 0, 0);
	return mark && !(mark->flags & FRONTEND_OPEN) && !is_node(addr);
}

/* Whether the packet's sender may use the frontend. */
static bool check_range(struct flow *flow, struct frontend *frontend)
{
	if (!(frontend->flags & FRONTEND_RANGES))
		return true;
	flow->source_range.prefix = SOURCE_RANGE_BITS;
	flow->source_range.service = frontend->service;
	flow->source_range.addr = flow->source;
	return source_ranges.lookup(&flow->source_range) || refuse(flow, REASON_SOURCE_RANGE);
}

/* Why a selection without backends gives none. */
static u32 refusal(struct service *service)
{
	return service && service->flags & SERVICE_DROP ? REASON_NO_LOCAL_BACKEND : REASON_NO_BACKEND;
}

/* The backend in a slot. Slots move while backends are removed; one that is gone just now falls back to the first. */
static struct backend *find_backend(struct backend_key *key, u32 service, u32 slot)
{
	key->service = service;
	key->slot = slot;
	struct backend *backend = backends.lookup(key);
	if (backend || !slot)
		return backend;
	key->slot = 0;
	return backends.lookup(key);
}

/* Whether a backend chosen earlier still stands in its slot. One that has moved to another slot counts as gone: its
 * clients without a connection choose anew, which no protocol forbids. */
static bool is_backend(struct backend_key *key, u32 service, u32 slot, const struct addr *addr, __be16 port)
{
	struct service *found = services.lookup(&service);
	if (!found || slot >= found->count)
		return false;
	key->service = service;
	key->slot = slot;
	struct backend *backend = backends.lookup(key);
	return backend && backend->port == port && same_addr(&backend->addr, addr);
}

/* Whether another connection of the client's uses this backend already: on the wire both would be one. */
static bool clashes(struct flow *flow, const struct addr *backend, __be16 backend_port, u64 now)
{
	set_tuple(flow, &flow->source, flow->source_port, backend, backend_port, flow->protocol);
	struct connection *connection = connections.lookup(&flow->tuple);
	if (!connection || !is_alive(flow, connection, now))
		connection = connections_new.lookup(&flow->tuple);
	if (!connection || !is_alive(flow, connection, now))
		return false;
	return !(connection->flags & CONN_NAT) || connection->vip_port != flow->destination_port ||
	       !same_addr(&connection->vip, &flow->destination);
}

/* The backend that the client is to stay with, if it still is one. */
static struct backend *affine_backend(struct affinity_key *key, struct slot_key *slot_key, struct backend_key *backend_key,
				      u64 now)
{
	struct affinity *known = affinities.lookup(key);
	if (!known || known->expires <= now)
		return NULL;
	slot_key->service = key->service;
	slot_key->port = known->port;
	slot_key->pad = 0;
	slot_key->addr = known->backend;
	u32 *slot = slots.lookup(slot_key);
	return slot ? find_backend(backend_key, key->service, *slot) : NULL;
}

/* Fills flow->translation with the backend in flow->backend, unless it will not do. */
static bool take_backend(struct flow *flow, struct backend *backend, u64 now, bool in_spite_of_clash)
{
	if (!in_spite_of_clash && clashes(flow, &backend->addr, backend->port, now))
		return refuse(flow, REASON_TRANSLATION_CLASH);
	flow->translation.backend = backend->addr;
	flow->translation.backend_port = backend->port;
	flow->translation.service = flow->backend.service;
	flow->translation.slot = flow->backend.slot;
	return true;
}

static bool take_affine_backend(struct flow *flow, u32 service, u64 now)
{
	flow->affinity_key.client = flow->source;
	flow->affinity_key.service = service;
	struct backend *backend = affine_backend(&flow->affinity_key, &flow->slot_key, &flow->backend, now);
	return backend && take_backend(flow, backend, now, false);
}

/* Fills flow->translation with a backend of the service. `outside`: for a client who may come by other nodes as well. */
static bool choose_backend(struct flow *flow, u32 service_id, bool outside, u64 now)
{
	struct service *service = services.lookup(&service_id);
	if (!service || !service->count)
		return refuse(flow, refusal(service));
	u32 count = service->count;
	if (service->affinity_seconds && take_affine_backend(flow, service_id, now))
		return true;
	bool by_ring = outside && service->positions;
	u32 start = by_ring ? slot_by_ring(flow, service_id, service) : bpf_get_prandom_u32();
	flow->reason = REASON_NO_BACKEND;
	/* The last attempt is the first backend again. Where nothing tells that the earlier connection is over, as with
	 * UDP, what is addressed last holds. */
	LOOP for (int i = 0; i <= ATTEMPTS; i++) {
		bool last = i == ATTEMPTS;
		if (last && (flow->protocol != IPPROTO_UDP || flow->reason != REASON_TRANSLATION_CLASH))
			break;
		u32 slot = last ? 0 : i;
		OPAQUE(slot);
		if (slot >= count)
			continue;
		struct backend *backend = find_backend(&flow->backend, service_id, (start + slot) % count);
		if (!backend)
			continue;
		if (take_backend(flow, backend, now, last))
			return true;
	}
	return false;
}

/* The client stays with the backend that it has been given, for the time from now on. */
static void renew_affinity(struct flow *flow, u32 service_id, u64 now)
{
	struct service *service = services.lookup(&service_id);
	if (!service || !service->affinity_seconds)
		return;
	flow->affinity_key.client = flow->source;
	flow->affinity_key.service = service_id;
	struct affinity *fresh = &flow->affinity;
	fresh->backend = flow->translation.backend;
	fresh->port = flow->translation.backend_port;
	fresh->expires = now + service->affinity_seconds;
	affinities.update(&flow->affinity_key, fresh);
}

/* Whether the packet can go on with the backend that its predecessors went to. */
static bool is_current(struct flow *flow, struct translation *known, u32 service, u64 now)
{
	if (known->expires <= now || known->service != service)
		return false;
	/* A connection stays with its backend, even with one that is not to get new ones. */
	if ((flow->protocol == IPPROTO_TCP || flow->protocol == IPPROTO_SCTP) && !flow->opens)
		return true;
	if (!is_backend(&flow->backend, service, known->slot, &known->backend, known->backend_port))
		return false;
	return !flow->opens || !clashes(flow, &known->backend, known->backend_port, now);
}

/* A packet to a Service: sends it to the backend that its predecessors went to, or to one of the selection. */
static bool send_to_backend(struct flow *flow, u32 service, bool outside)
{
	struct translation_key *key = &flow->translation_key;
	key->client = flow->source;
	key->vip = flow->destination;
	key->client_port = flow->source_port;
	key->vip_port = flow->destination_port;
	key->protocol = flow->protocol;
	u64 now = seconds();
	u64 expires = now + lifetime(flow->protocol, 0, true);
	struct translation *known = translations.lookup(key);
	if (known && is_current(flow, known, service, now)) {
		if (known->expires != expires)
			known->expires = expires;
		flow->translation = *known;
	} else {
		if (!choose_backend(flow, service, outside, now))
			return false;
		renew_affinity(flow, service, now);
		flow->translation.expires = expires;
		if (translations.update(key, &flow->translation))
			return refuse(flow, REASON_MAP_FULL);
	}
	flow->vip_known = true;
	flow->vip = flow->destination;
	flow->vip_port = flow->destination_port;
	flow->service = flow->translation.service;
	set_destination(flow, &flow->translation.backend, flow->translation.backend_port);
	return true;
}

/* Whether the packet, which has passed send_to_backend(), is the stack's to translate. */
static bool is_of_stack(struct flow *flow)
{
	return flow->vip_known && flow->translation.slot == SLOT_STACK;
}

/* A packet of a pod to an address that is no pod's: if it is for a Service, sends it to a backend. */
static bool translate(struct flow *flow)
{
	struct frontend *frontend = NULL;
	if (flow->kind == KIND_PORTS)
		frontend = find_frontend(&flow->frontend, &flow->destination, flow->destination_port, flow->protocol);
	if (!frontend)
		return !is_closed_address(&flow->frontend, &flow->destination) ||
		       refuse(flow, REASON_NO_SERVICE_PORT);
	u32 service = frontend->service;
	return check_range(flow, frontend) && send_to_backend(flow, service, false);
}
