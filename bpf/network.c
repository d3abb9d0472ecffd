/* Entry point at the node's own devices. */
int from_network(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}
