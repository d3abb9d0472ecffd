/* Entry points at a pod's host-side veth. */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include "include/types.h"
#include "include/reasons.h"
#include "include/maps.h"

int from_pod(struct __sk_buff *skb)
{
	struct addr a = {};
	return endpoints.lookup(&a) ? TC_ACT_OK : TC_ACT_UNSPEC;
}

int to_pod(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}
