/* Services at the socket: a client's socket is given a backend when it connects (or sends, without a connection), and
 * no packet needs translation. These programs can be preempted, so all they use lies on the stack.
 *
 * What is remembered of a socket, by its cookie: the backend that it sends to without a connection, so that it stays
 * with one, and what it addressed when it got a backend, so that it sees replies and its peer under that address. */
#pragma once

#define PASS 1
#define REJECT 0

#define ECONNREFUSED 111

struct peer {
	struct addr addr;
	__be16 port;
	u8 protocol;
};

/* As packets have it. */
static u8 plain_protocol(u32 protocol)
{
	return protocol == IPPROTO_MPTCP ? IPPROTO_TCP : protocol;
}

static void read_v4(struct bpf_sock_addr *ctx, struct peer *peer)
{
	set_v4(&peer->addr, ctx->user_ip4);
	peer->port = ctx->user_port;
	peer->protocol = plain_protocol(ctx->protocol);
}

static void read_v6(struct bpf_sock_addr *ctx, struct peer *peer)
{
	peer->addr.w[0] = ctx->user_ip6[0];
	peer->addr.w[1] = ctx->user_ip6[1];
	peer->addr.w[2] = ctx->user_ip6[2];
	peer->addr.w[3] = ctx->user_ip6[3];
	peer->port = ctx->user_port;
	peer->protocol = plain_protocol(ctx->protocol);
}

static void write_v4(struct bpf_sock_addr *ctx, struct peer *peer)
{
	ctx->user_ip4 = peer->addr.w[3];
	ctx->user_port = peer->port;
}

static void write_v6(struct bpf_sock_addr *ctx, struct peer *peer)
{
	ctx->user_ip6[0] = peer->addr.w[0];
	ctx->user_ip6[1] = peer->addr.w[1];
	ctx->user_ip6[2] = peer->addr.w[2];
	ctx->user_ip6[3] = peer->addr.w[3];
	ctx->user_port = peer->port;
}

static void set_peer_key(struct socket_peer_key *key, u64 cookie, struct peer *peer, u8 reverse)
{
	key->cookie = cookie;
	key->addr = peer->addr;
	key->port = peer->port;
	key->protocol = peer->protocol;
	key->reverse = reverse;
	key->pad = 0;
}

/* The socket is told ECONNREFUSED, as by a host where nobody listens. */
static int reject(struct peer *peer, u32 reason)
{
	count(reason, 0);
	tell_rejected(&peer->addr, peer->port, peer->protocol, reason);
	bpf_set_retval(-ECONNREFUSED);
	return REJECT;
}

static void set_client(struct bpf_sock_addr *ctx, struct affinity_key *key, u32 service)
{
	u64 cookie = netns_cookie(ctx);
	key->client.w[0] = cookie >> 32;
	key->client.w[1] = cookie;
	key->client.w[2] = ~0U;
	key->client.w[3] = ~0U;
	key->service = service;
	key->pad = 0;
}

/* A backend for a new connection: the one that the client stays with, or any. */
static struct backend *choose(struct bpf_sock_addr *ctx, struct backend_key *key, u32 service_id, struct service *service)
{
	struct affinity_key affinity_key;
	struct slot_key slot_key;
	u32 lasting = service->affinity_seconds;
	struct backend *backend = NULL;
	if (lasting) {
		set_client(ctx, &affinity_key, service_id);
		backend = affine_backend(&affinity_key, &slot_key, key, seconds());
	}
	if (!backend)
		backend = find_backend(key, service_id, bpf_get_prandom_u32() % service->count);
	if (backend && lasting) {
		struct affinity fresh = { .port = backend->port, .expires = seconds() + lasting };
		fresh.backend = backend->addr;
		affinities.update(&affinity_key, &fresh);
	}
	return backend;
}

/* Whether Services are resolved for this socket, and not later, for its packets. */
static bool is_translated(struct bpf_sock_addr *ctx)
{
	u64 only = setting(SETTING_SOCKET_NAMESPACE);
	return !only || netns_cookie(ctx) == only;
}

static bool is_of_node(struct bpf_sock_addr *ctx)
{
	return netns_cookie(ctx) == setting(SETTING_NODE_NAMESPACE);
}

/* Whether the Service's source ranges let the node itself in, by the address that it is known by. */
static bool is_node_in_ranges(u32 service, const struct addr *vip)
{
	u32 node = NO_DEVICE;
	struct device *device = devices.lookup(&node);
	if (!device)
		return false;
	bool v4 = vip->w[2] == V4_MAPPED && !(vip->w[0] | vip->w[1]);
	struct source_range_key key = { .prefix = SOURCE_RANGE_BITS, .service = service };
	key.addr = v4 ? device->addr : device->addr6;
	return source_ranges.lookup(&key);
}

/* What is to be dropped is dropped as packets, so that the application sees what it would see elsewhere. */
static int leave_to_packets(struct bpf_sock_addr *ctx)
{
	if (is_of_node(ctx))
		watch_own_packets();
	return PASS;
}

/* Replaces a Service's address by a backend's. `sticky`: the socket stays with the backend that it has been given for
 * this address. Returns PASS or REJECT; *changed tells whether there is something to write back. */
static int resolve(struct bpf_sock_addr *ctx, struct peer *peer, bool sticky, bool *changed)
{
	struct frontend_key frontend_key;
	struct backend_key backend_key;
	struct socket_peer_key key;
	struct socket_peer remembered = {};

	*changed = false;
	if (peer->protocol != IPPROTO_TCP && peer->protocol != IPPROTO_UDP)
		return PASS;
	if (!is_translated(ctx))
		return PASS;
	struct frontend *frontend = find_frontend(&frontend_key, &peer->addr, peer->port, peer->protocol);
	if (!frontend)
		return is_closed_address(&frontend_key, &peer->addr) ? reject(peer, REASON_NO_SERVICE_PORT) : PASS;
	/* What address a pod has shows in its packets only. */
	if (frontend->flags & FRONTEND_RANGES && !(is_of_node(ctx) && is_node_in_ranges(frontend->service, &peer->addr)))
		return leave_to_packets(ctx);
	u32 service_id = frontend->service;
	u64 cookie = socket_cookie(ctx);
	struct peer vip = *peer;
	if (sticky) {
		set_peer_key(&key, cookie, &vip, 0);
		struct socket_peer *known = socket_peers.lookup(&key);
		if (known && known->service == service_id &&
		    is_backend(&backend_key, service_id, known->slot, &known->addr, known->port)) {
			peer->addr = known->addr;
			peer->port = known->port;
			*changed = true;
			return PASS;
		}
	}
	struct service *service = services.lookup(&service_id);
	if (service && !service->count && service->flags & SERVICE_DROP)
		return leave_to_packets(ctx);
	if (!service || !service->count)
		return reject(peer, REASON_NO_BACKEND);
	struct backend *backend = choose(ctx, &backend_key, service_id, service);
	if (!backend)
		return reject(peer, REASON_NO_BACKEND);
	peer->addr = backend->addr;
	peer->port = backend->port;
	*changed = true;
	remembered.service = service_id;
	remembered.slot = backend_key.slot;
	if (sticky) {
		remembered.addr = peer->addr;
		remembered.port = peer->port;
		socket_peers.update(&key, &remembered);
	}
	set_peer_key(&key, cookie, peer, 1);
	remembered.addr = vip.addr;
	remembered.port = vip.port;
	socket_peers.update(&key, &remembered);
	return PASS;
}

/* Replaces a backend's address by what the socket had addressed. Returns whether there was such an address. */
static bool restore(struct bpf_sock_addr *ctx, struct peer *peer)
{
	struct socket_peer_key key;
	set_peer_key(&key, socket_cookie(ctx), peer, 1);
	struct socket_peer *known = socket_peers.lookup(&key);
	if (!known)
		return false;
	peer->addr = known->addr;
	peer->port = known->port;
	return true;
}

/* The socket is closed: what is remembered of its connection goes, so that the map evicts none of a live one. What a
 * socket has sent to without a connection is not known here, and is left to eviction. */
static void forget(struct bpf_sock *ctx)
{
	struct socket_peer_key key;
	struct peer peer;
	/* Both are read, before the choice: the verifier takes no pointer into ctx that depends on one. */
	__be32 v4 = ctx->dst_ip4, v6 = ctx->dst_ip6[3];
	OPAQUE(v4);
	OPAQUE(v6);
	peer.addr.w[0] = ctx->dst_ip6[0];
	peer.addr.w[1] = ctx->dst_ip6[1];
	peer.addr.w[2] = ctx->dst_ip6[2];
	peer.addr.w[3] = v6;
	if (ctx->family == AF_INET)
		set_v4(&peer.addr, v4);
	peer.port = ctx->dst_port;
	if (!peer.port)
		return;
	peer.protocol = plain_protocol(ctx->protocol);
	set_peer_key(&key, socket_cookie(ctx), &peer, 1);
	socket_peers.delete(&key);
}
