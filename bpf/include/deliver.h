/* Where a packet that may pass goes: into a pod of this node, out of the node, or to the stack.
 *
 * Redirects skip the stack, and with it TTL and MTU. We lower the TTL; whatever the stack would answer with an ICMP
 * error, fragment or route in a way of its own goes to the stack. It forwards such packets under our mark. */
#pragma once

/* What becomes of a packet that is none of tc's actions, and not refused. */
#define DELIVER 0x101 /* to the pod of this node behind flow->ifindex */
#define LEAVE 0x102   /* out of the node */
#define PASS_ON 0x103 /* there, past the stack: nothing stands against it */

#define MARK_MASK 0x00f00000
#define MARK_JUDGED 0x00100000

/* To the stack, which may forward it: all that we have to say on it is said. */
static int to_stack(struct __sk_buff *skb)
{
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_JUDGED;
	return TC_ACT_UNSPEC;
}

/* The client of a Service gets replies from the address that it spoke to. Done last, where the packet is handed over:
 * what the stack answers on the way must quote the packet as the backend sent it. */
static void untranslate(struct flow *flow)
{
	if (!flow->nat_reply)
		return;
	if (flow->kind == KIND_ICMP_ERROR)
		untranslate_error(flow);
	else
		set_source(flow, &flow->vip, flow->vip_port);
}

static int deliver(struct flow *flow, u32 ifindex)
{
	flow->ifindex = ifindex;
	return DELIVER;
}

/* Into a pod of this node, whose host-side veth is flow->ifindex. Its egress program does not see the packet. */
static int find_way_in(struct __sk_buff *skb, struct flow *flow)
{
	if (skb->pkt_type != PACKET_HOST || flow->ttl <= 1)
		return to_stack(skb);
	if (flow->length <= SMALLEST_MTU)
		return PASS_ON;
	u32 mtu = 0;
	if (bpf_check_mtu(skb, flow->ifindex, &mtu, 0, 0) < 0)
		return stop(flow, REASON_NO_ROUTE);
	return flow->length > mtu ? to_stack(skb) : PASS_ON;
}

static bool is_uplink(u32 ifindex)
{
	struct device *device = devices.lookup(&ifindex);
	return device && device->flags & DEVICE_UPLINK;
}

/* Of Linux 6.3: without the link layer's address of the next hop, which the redirect finds by itself. An earlier kernel
 * says EINVAL at once. */
#define FIB_SKIP_NEIGH 4
#define EINVAL 22

static long find_route(struct __sk_buff *skb, struct flow *flow, u32 length)
{
	struct bpf_fib_lookup *route = &flow->route;
	route->family = AF_FAMILY;
	route->l4_protocol = flow->protocol;
	route->sport = flow->source_port;
	route->dport = flow->destination_port;
	route->tot_len = length;
	route->ifindex = skb->ifindex;
	fill_route_addresses(flow);
	long found = bpf_fib_lookup(skb, route, sizeof(*route), FIB_SKIP_NEIGH);
	return found == -EINVAL ? bpf_fib_lookup(skb, route, sizeof(*route), 0) : found;
}

/* Out of the node, by flow->route. */
static int find_way_out(struct __sk_buff *skb, struct flow *flow)
{
	/* Broadcasts are for the node itself, if for anybody. */
	if (skb->pkt_type != PACKET_HOST || flow->ttl <= 1)
		return TC_ACT_UNSPEC;
	struct bpf_fib_lookup *route = &flow->route;
	long found = find_route(skb, flow, flow->length);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED) {
		/* Too long: refused with ICMP, or fragmented, by the stack; then to_network does the rest. That lookup has not
		 * said where to. */
		find_route(skb, flow, 0);
		return is_uplink(route->ifindex) ? to_stack(skb) : stop(flow, REASON_NOT_UPLINK);
	}
	/* Local, unreachable, prohibited, forwarding off: the stack accepts or answers, and forwards nothing. */
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return TC_ACT_UNSPEC;
	return is_uplink(route->ifindex) ? PASS_ON : stop(flow, REASON_NOT_UPLINK);
}

/* Hands the packet over: to flow->ifindex, or to the next hop of flow->route. Neighbours are left to the kernel in every
 * case: who only copies addresses out of its table keeps an old one for ever. */
static int pass_on(struct __sk_buff *skb, struct flow *flow)
{
	if (!lower_ttl(skb, flow))
		return NO_ACTION;
	untranslate(flow);
	if (flow->ifindex)
		return bpf_redirect_peer(flow->ifindex, 0);
	struct bpf_fib_lookup *route = &flow->route;
	flow->nexthop.nh_family = route->family;
	__builtin_memcpy(flow->nexthop.ipv6_nh, route->ipv6_dst, sizeof(route->ipv6_dst));
	return redirect_neigh(route->ifindex, &flow->nexthop, sizeof(flow->nexthop), 0);
}
