/* What is known about one packet on its way through a program. It lies in a per-CPU map, because everything is inlined
 * into one function with 512 bytes of stack. The tc hooks run with bottom halves disabled and do not nest on a CPU;
 * the socket hooks can be preempted, so they use the stack alone. */
#pragma once

enum kind {
	KIND_PORTS,      /* TCP, UDP, SCTP */
	KIND_ECHO,       /* ICMP echo request or reply: the identifier stands for the requester's port */
	KIND_ICMP_ERROR, /* quotes the packet that it is about */
	KIND_PORTLESS,   /* everything else */
};

enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER, /* has no ports of its own */
};

struct icmp_header {
	u8 type;
	u8 code;
	__be16 checksum;
	__be32 rest;
};

struct pseudo_v4 {
	__be32 source;
	__be32 destination;
	__be16 protocol;
	__be16 length;
};

struct pseudo_v6 {
	struct addr source;
	struct addr destination;
	__be32 length;
	__be32 protocol;
};

union ip_header {
	struct iphdr v4;
	struct ipv6hdr v6;
};

/* What an IP header says. */
struct packet {
	struct addr source;
	struct addr destination;
	u32 l4; /* offset of the transport header in the frame */
	u32 total; /* length of the IP packet */
	u32 fragment_id; /* as it is in the packet */
	u8 protocol;
	u8 fragment;
	u8 ttl;
	u8 tos;
};

/* Of the packet's transport header an ICMP error quotes this much. SCTP's checksum must be in it, and TCP's, of which the
 * kernel lets nothing be cut off that it would still have to sum up. */
#define QUOTED 8
#define QUOTED_SCTP 12
#define QUOTED_TCP sizeof(struct tcphdr)

/* What a refused packet is answered with, and what of it the answer needs. */
struct answer {
	union ip_header ip;
	struct tcphdr tcp;
	struct tcphdr refused;
	union {
		struct pseudo_v4 v4;
		struct pseudo_v6 v6;
	} pseudo;
	struct icmp_header icmp;
	u8 quoted[sizeof(union ip_header) + QUOTED_TCP];
};

/* Of a packet. */
struct ends {
	struct addr source;
	struct addr destination;
	__be16 source_port;
	__be16 destination_port;
};

struct flow {
	/* The packet as it is to be: on the wire it is rewritten at the end (nat.h). */
	struct addr source;
	struct addr destination;
	__be16 source_port;
	__be16 destination_port;
	u8 protocol;
	u8 kind;
	u8 fragment;
	u8 tcp_flags;
	bool opens; /* says of itself that it opens a connection: TCP SYN, SCTP INIT */
	u32 l4;     /* offset of the transport header in the frame */
	u32 total; /* length of the IP packet */
	u32 length; /* the same, or that of the longest segment that the packet will be cut into */
	u32 fragment_id;
	u8 ttl;
	u8 tos;
	u8 hook;
	u8 direction; /* DIRECTION_* that a drop event shows */
	u32 reason;   /* why it is dropped, where a stage has said so */
	u32 ifindex;  /* of the pod's device that it goes to, where a stage has said so */
	u32 generation; /* of the policy, from before anything was looked up: what it vouches for is not older */
	u32 sides[2]; /* where sender and receiver are, as in struct connection */
	u32 mtu;      /* of the way on, where the reason is TOO_BIG */

	/* The connection. For ICMP errors: that of the quoted packet, with the quoted packet's direction. */
	struct tuple tuple;
	bool swapped;   /* the packet's source stands second in the tuple */
	bool known;     /* there is an entry for the connection */
	bool is_new;    /* it is, or would be, in connections_new */
	bool ended;     /* in connections stands one of the same ends that is over */
	bool followed;  /* its connection's entry has said all, see established.h */
	bool reply;     /* the packet goes from the responder to the initiator */
	bool from_node; /* opened by the node itself */
	bool judged;    /* a program before the stack has judged the packet */
	bool ours;      /* of what the network brings: for a pod, or for a backend here */
	bool vip_known; /* vip, vip_port and service below are set */
	bool nat_reply; /* goes from the backend to the client of a translated connection */
	bool as_node;   /* leaves the node under the node's address, if it leaves it */
	bool hairpin;   /* goes back to the pod that it is from, under the node's address */
	struct addr vip;
	__be16 vip_port;
	bool changed;        /* the ends above are not those on the wire any more */
	bool quoted_changed; /* the same for the packet that an ICMP error quotes */
	u32 service;
	u32 policy;
	u32 action; /* as in seal() */
	u32 subject_flags; /* of the subject judged last */
	u32 rule_flags;    /* of the rule that allowed it */
	/* By direction: which of the judged subjects' permissions are to be logged, and their policies. */
	bool logged[2];
	bool audited; /* some of them deny it, and let it pass */
	u8 pad2;
	u32 policies[2];

	/* Offset of the packet quoted in an ICMP error, and of its transport header. */
	u32 quoted;
	u32 quoted_l4;

	/* Keys and values for helpers. From here on an earlier packet's content may stand: all is written before it is
	 * read, and padding is never anything else than zero. */
	union ip_header ip;
	struct packet packet;
	struct ends wire; /* how they are there, if changed */
	struct ends quoted_wire;
	struct connection fresh;
	/* For the judge: who opened the connection to whom. */
	struct addr initiator;
	struct addr responder;
	__be16 initiator_port;
	__be16 responder_port;
	struct rule_key rule;
	struct member_key member;
	struct peer_block_key peer_block;
	struct frontend_key frontend;
	struct backend_key backend;
	struct source_range_key source_range;
	struct cidr_key cidr;
	struct slot_key slot_key;
	struct ring_key ring_key;
	struct affinity_key affinity_key;
	struct affinity affinity;
	struct translation_key translation_key;
	struct translation translation;
	struct fragment_key fragment_key;
	struct fragment_ports fragment_ports;
	struct bpf_fib_lookup route;
	struct bpf_redir_neigh nexthop;
	u8 header[16];
	struct masquerade_key masquerade_key;
	struct masqueraded_key masqueraded_key;
	struct masqueraded masqueraded;
	struct answer answer;
	struct denied_key denied_key;
	struct denied denied;
};

MAP_PRIVATE("percpu_array", scratch, struct flow, 1);

static struct flow *new_flow(u8 hook, u8 direction)
{
	u32 zero = 0;
	struct flow *flow = scratch.lookup(&zero);
	if (!flow)
		return NULL;
	__builtin_memset(flow, 0, offsetof(struct flow, ip));
	flow->hook = hook;
	flow->direction = direction;
	flow->generation = setting(SETTING_GENERATION);
	FORGET();
	return flow;
}

/* Stages return whether the packet goes on; `return refuse(flow, REASON_…)` ends it. The reason lies in memory, not in
 * a register, so that the verifier sees all refusals as one path. */
static bool refuse(struct flow *flow, u32 reason)
{
	flow->reason = reason;
	return false;
}
