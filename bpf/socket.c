/* Entry points in the cgroup of a node's pods. */
int connect4(struct bpf_sock_addr *ctx) { return 1; }
int connect6(struct bpf_sock_addr *ctx) { return 1; }
int sendmsg4(struct bpf_sock_addr *ctx) { return 1; }
int sendmsg6(struct bpf_sock_addr *ctx) { return 1; }
int recvmsg4(struct bpf_sock_addr *ctx) { return 1; }
int recvmsg6(struct bpf_sock_addr *ctx) { return 1; }
int getpeername4(struct bpf_sock_addr *ctx) { return 1; }
int getpeername6(struct bpf_sock_addr *ctx) { return 1; }
