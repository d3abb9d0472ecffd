/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Entry points in the cgroup of a node's pods. The IPv6 ones see IPv4 peers too, mapped, where an application uses
 * IPv6 sockets for both. */
#include "include/socket_lb.h"

static int resolve_v4(struct bpf_sock_addr *ctx, bool sticky)
{
	struct peer peer;
	bool changed;
	read_v4(ctx, &peer);
	int verdict = resolve(ctx, &peer, sticky, &changed);
	if (changed)
		write_v4(ctx, &peer);
	return verdict;
}

static int resolve_v6(struct bpf_sock_addr *ctx, bool sticky)
{
	struct peer peer;
	bool changed;
	read_v6(ctx, &peer);
	int verdict = resolve(ctx, &peer, sticky, &changed);
	if (changed)
		write_v6(ctx, &peer);
	return verdict;
}

static void restore_v4(struct bpf_sock_addr *ctx)
{
	struct peer peer;
	read_v4(ctx, &peer);
	if (restore(ctx, &peer))
		write_v4(ctx, &peer);
}

static void restore_v6(struct bpf_sock_addr *ctx)
{
	struct peer peer;
	read_v6(ctx, &peer);
	if (restore(ctx, &peer))
		write_v6(ctx, &peer);
}

int connect4(struct bpf_sock_addr *ctx)
{
	return resolve_v4(ctx, false);
}

int connect6(struct bpf_sock_addr *ctx)
{
	return resolve_v6(ctx, false);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return resolve_v4(ctx, true);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	return resolve_v6(ctx, true);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	restore_v4(ctx);
	return PASS;
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	restore_v6(ctx);
	return PASS;
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	restore_v4(ctx);
	return PASS;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	restore_v6(ctx);
	return PASS;
}

int sock_release(struct bpf_sock *ctx)
{
	forget(ctx);
	return PASS;
}
