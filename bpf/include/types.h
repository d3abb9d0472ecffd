/* Keys and values of all maps, and what else the agent must know. One definition: the agent's packing is derived from
 * these structs (through BCC's descriptions, in the loader's manifest), never written a second time.
 *
 * Byte order: fields named *port and addresses are in network order, everything else in host order.
 */
#pragma once

/* IPv4 as v4-mapped IPv6, everywhere. */
struct addr {
	__u32 w[4];
};

/* ---- who is where -------------------------------------------------------------------------------------------- */

/* endpoints: address -> who has it. Pods of the whole cluster, and the nodes' own addresses.
 * A pod of this node has the ifindex of its host-side veth; all others have 0. */
struct endpoint {
	__u32 identity;
	__u32 ifindex;
	__u32 flags; /* EP_* */
};

#define EP_POD 0x1
#define EP_OWN_NODE 0x2
#define EP_REMOTE_NODE 0x4
/* A pod of this node whose rules do not stand yet: it reaches and is reached by its own node only. */
#define EP_CLOSED 0x8

/* devices: ifindex -> what it is to us. Packets leave the node only through devices that stand here as uplinks:
 * whatever else a route leads to may be a pod that we do not know yet. Number 0 is the node itself, no uplink. */
struct device {
	__u32 flags; /* DEVICE_* */
	/* The node's addresses that connections get when they leave through it again; all zeroes: none. */
	struct addr addr;
	struct addr addr6;
};

#define DEVICE_UPLINK 0x1
/* Of the node itself: what pods send out of the cluster gets the node's address, but for `non_masquerade`. */
#define DEVICE_MASQUERADE 0x2
#define NO_DEVICE 0

/* non_masquerade: ranges of addresses to which pods speak under their own. Value: 1. */
struct cidr_key {
	__u32 prefix; /* in bits of the address */
	struct addr addr;
};

#define CIDR_BITS 128

#define ID_UNKNOWN 0
#define ID_NODE 1
#define ID_REMOTE_NODE 2
#define ID_WORLD 3

/* ---- Services ------------------------------------------------------------------------------------------------ */

/* frontends: what a client addresses -> the selection of backends (key of `services`) that it gets.
 * The entry {address, port 0, protocol 0} marks an address as a Service's: its other ports are refused, but for
 * addresses of nodes, and those that are FRONTEND_OPEN (external IPs may be somebody's own). */
struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

struct frontend {
	__u32 service; /* for clients in the cluster */
	__u32 outside; /* for clients outside of it */
	__u32 flags;   /* FRONTEND_* */
	__u32 pad;
};

#define FRONTEND_OPEN 0x1
/* Only for clients in `source_ranges` of frontend.service. */
#define FRONTEND_RANGES 0x2

/* source_ranges: who may use a frontend; the longest prefix of service and address. Value: 1. */
struct source_range_key {
	__u32 prefix; /* in bits: 32 of the service, then those of the address */
	__u32 service;
	struct addr addr;
};

#define SOURCE_RANGE_BITS (32 + 128)

/* services: selection -> how many slots of backends are in use (slots 0 … count-1). A selection is the number of a
 * service port, with bit 30 set the one for the traffic policy Local; with bit 29 set it is a host port, with bit 31 it is for IPv6. */
struct service {
	__u32 count;
	__u32 flags;
	__u32 affinity_seconds;
	__u32 positions; /* of its ring, a power of two; 0: none */
};

/* Without backends here while there are some elsewhere: no answer, rather than a refusal. */
#define SERVICE_DROP 0x1

struct backend_key {
	__u32 service;
	__u32 slot;
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 flags;
};

/* slots: of Services with session affinity, a selection's backend -> the slot in which it stands. */
struct slot_key {
	__u32 service;
	__be16 port;
	__u16 pad;
	struct addr addr;
};

/* ring: of selections for clients outside, a position -> the slot of the backend that stands there. A connection draws
 * positions by its hash until it comes upon one: where backends stand is the same on all nodes, their slots are not. */
struct ring_key {
	__u32 service;
	__u32 position;
};

/* affinities: client and selection -> the backend that it stays with. A client is an address; at the socket, where that
 * is not known yet, it is a network namespace: its cookie, and all ones in the words that no address has so. */
struct affinity_key {
	struct addr client;
	__u32 service;
	__u32 pad;
};

struct affinity {
	struct addr backend;
	__be16 port;
	__u16 pad;
	__u32 pad2;
	__u64 expires; /* ktime seconds; set anew by each connection */
};

/* ---- policy -------------------------------------------------------------------------------------------------- */

/* subjects: identity -> its rules; only identities with pods on this node. One write of this entry replaces a policy. */
struct subject {
	__u32 policy;
	__u32 flags;           /* SUBJECT_* */
	__u32 ingress_lengths; /* bit n: some rule has port prefix n (0 … 16); bit 31: some rule has protocol ANY */
	__u32 egress_lengths;
};

#define SUBJECT_INGRESS_ISOLATED 0x1
#define SUBJECT_EGRESS_ISOLATED 0x2
/* Its namespace asks that denied connections be logged, where that is left to namespaces. */
#define SUBJECT_LOG 0x4
/* Its namespace is in audit: what its policies deny passes, and is told. */
#define SUBJECT_AUDIT 0x8
#define LENGTH_ANY_PROTOCOL (1U << 31)

#define DIRECTION_INGRESS 0
#define DIRECTION_EGRESS 1

struct rule_key {
	__u32 policy;
	__u8 direction;
	__u8 protocol; /* 0: any, then length and port are 0 */
	__u8 length;   /* of the port prefix, 0 … 16 */
	__u8 pad;
	__be16 port;   /* masked to its prefix */
	__u16 pad2;
};

#define RULE_SETS 8

struct rule {
	__u32 sets[RULE_SETS]; /* the first `count` of them; SET_ANY alone means every peer */
	__u32 count;
	__u32 flags; /* RULE_* */
	__u32 blocks; /* the set of blocks of addresses (first part of the key of `peer_blocks`); 0: none */
};

/* Some policy behind it asks that allowed connections be logged, where that is left to policies. */
#define RULE_LOG 0x1

#define SET_NONE 0
#define SET_ANY 1

struct member_key {
	__u32 set;
	__u32 member; /* an identity */
};

/* peer_blocks: a set's blocks of addresses, and their exceptions: the longest prefix of set and address holds. Value:
 * SET_ANY allows the address, SET_NONE is an exception, another set allows it if the peer's identity is in that. */
struct peer_block_key {
	__u32 prefix; /* in bits: 32 of the set, then those of the address */
	__u32 set;
	struct addr addr;
};

#define PEER_BLOCK_BITS (32 + 128)

/* ---- connections --------------------------------------------------------------------------------------------- */

/* connections, connections_new: one entry a connection and node, found from both directions: the lower
 * (address, port) stands first (bytes compared in network order), `CONN_SWAPPED` in the value tells whether that is the
 * responder. ICMP echo has the identifier as the requester's port and 0 as the other one's. */
struct tuple {
	struct addr a;
	struct addr b;
	__be16 a_port;
	__be16 b_port;
	__u8 protocol;
	__u8 pad[3];
};

struct connection {
	__u64 expires;    /* ktime seconds */
	__u32 generation; /* of the policy that allowed it */
	__u32 flags;      /* CONN_* */
	struct addr vip;  /* what the client addressed, where we translated on the wire (CONN_NAT) */
	__be16 vip_port;
	__u16 pad;
	__u32 service;
	/* Where the initiator is, and the responder: a pod's host-side veth, or ELSEWHERE. As true as the generation is
	 * current. 0: its packets are told nothing by this. */
	__u32 ifindex[2];
};

/* Beyond this node's uplinks. */
#define ELSEWHERE 0xffffffffU

#define CONN_SWAPPED 0x1
#define CONN_REPLIED 0x2
#define CONN_NAT 0x4
#define CONN_FROM_NODE 0x8  /* opened by the node itself: not subject to ingress rules */
#define CONN_FIN_ORIGINAL 0x10
#define CONN_FIN_REPLY 0x20
#define CONN_RST 0x40
#define CONN_AS_NODE 0x80   /* opened by a pod of this node, and leaves it under the node's address */
#define CONN_LIVE 0x100     /* answered; of TCP, the handshake was through */

/* translations: client and VIP on the wire -> the backend that was chosen (the veth path, without a socket hook). At its
 * first start on a node the agent writes those that it finds in the kernel's own conntrack. */
struct translation_key {
	struct addr client;
	struct addr vip;
	__be16 client_port;
	__be16 vip_port;
	__u8 protocol;
	__u8 pad[3];
};

struct translation {
	struct addr backend;
	__be16 backend_port;
	__u16 pad;
	__u32 service;
	__u32 slot; /* where the backend stood when it was chosen: is it still there, it is still a backend; or SLOT_STACK */
	__u32 pad2;
	__u64 expires; /* ktime seconds */
};

/* Older than our programs, and translated by the stack in both directions: its packets go there as they are. Written by the
 * agent when it takes over from kube-proxy. */
#define SLOT_STACK 0xffffffffU

/* masquerades: a connection that leaves this node under the node's address -> the port under which it does: one from
 * outside to a backend on another node, or one of a pod to the outside (which is backend and VIP then). A client outside
 * may use one port towards several VIPs: these are several connections, also where the backend is the same. */
struct masquerade_key {
	struct addr client;
	struct addr vip;
	struct addr backend;
	__be16 client_port;
	__be16 vip_port;
	__be16 backend_port;
	__u8 protocol;
	__u8 pad;
};

/* masqueraded: the same from the other side: what the backend sees -> whose connection it is, and what was addressed. */
struct masqueraded_key {
	struct addr backend;
	struct addr node;
	__be16 backend_port;
	__be16 node_port;
	__u8 protocol;
	__u8 pad[3];
};

struct masqueraded {
	struct addr client;
	struct addr vip;
	__be16 client_port;
	__be16 vip_port;
	__u32 flags;   /* CONN_REPLIED, CONN_FIN_*, CONN_RST */
	__u64 expires; /* ktime seconds */
};

/* socket_peers: what a socket addressed -> backend, and backend -> what it addressed (for recvmsg, getpeername, and for
 * the agent, which frees sockets of backends that are gone). */
struct socket_peer_key {
	__u64 cookie;
	struct addr addr;
	__be16 port;
	__u8 protocol;
	__u8 reverse; /* 0: VIP to backend, 1: backend to VIP */
	__u32 pad;
};

struct socket_peer {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 service;
	__u32 slot; /* as in struct translation */
};

/* fragments: the ports of a fragmented packet, from its first fragment. */
struct fragment_key {
	struct addr source;
	struct addr destination;
	__u32 id; /* as it is in the packet */
	__u8 protocol; /* 0 in IPv6 */
	__u8 pad[3];
};

struct fragment_ports {
	__be16 source_port;
	__be16 destination_port;
	__u8 kind; /* enum kind of flow.h */
	__u8 protocol;
	__u16 pad;
};

/* ---- settings, counters, events ------------------------------------------------------------------------------ */

#define PORT_BLOCKS 3
/* Of what the policy log may lose: allowed, denied, audited. */
#define LOG_KINDS 3

/* settings: an array of u64, written by the agent where nothing else is said. */
enum setting {
	SETTING_GENERATION, /* raised by the agent after each applied batch that changes what is allowed, endpoints included */
	SETTING_MONITOR,    /* MONITOR_* */
	/* Set by the programs, once to_network has something to look for in what the node itself sends: replies of backends of
	 * the host network, packets to Services that the node may not use. */
	SETTING_OWN_PACKETS,
	/* The cookie of the only network namespace whose sockets are translated, or 0: all are. */
	SETTING_SOCKET_NAMESPACE,
	SETTING_PORTS, /* and the following: blocks of source ports for what leaves as the node: first << 16 | how many */
	SETTING_NODE_NAMESPACE = SETTING_PORTS + PORT_BLOCKS, /* the cookie of the node's own network namespace */
	SETTING_LOG,       /* LOG_*: what goes to the policy log */
	SETTING_LOG_ROUND, /* part of the keys of log_denied: the agent reads those of earlier rounds */
	SETTING_LOG_TOLD,  /* and the following: what of events_lost the log has told, one for each kind: the agent's own */
	SETTING_AUDIT = SETTING_LOG_TOLD + LOG_KINDS, /* not 0: all subjects of the node are in audit */
};

/* Entries of the array: with room for later ones, as a pinned map keeps its size. */
#define SETTINGS 16

#define MONITOR_DROPS 0x1
#define MONITOR_VERDICTS 0x2

#define LOG_ALLOWED 0x1        /* all connections that policies allow */
#define LOG_DENIED 0x2         /* all that they deny */
#define LOG_ALLOWED_MARKED 0x4 /* those that rules with RULE_LOG allow */
#define LOG_DENIED_MARKED 0x8  /* those to or from subjects with SUBJECT_LOG */
#define LOG_AUDITED 0x10       /* something here is in audit: for the agent; the programs note what they let pass in any case */

/* counters: per-CPU array by reason; reason numbers and names are in reasons.h. */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* events_drops and events_verdicts: ring buffers, filled only while somebody monitors. */
struct event {
	__u64 time; /* ktime ns */
	struct addr source;
	struct addr destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 direction; /* DIRECTION_* of the verdict; of a drop: the hook's side */
	__u8 reason;    /* reasons.h */
	__u8 hook;      /* HOOK_* */
	__u32 source_identity;
	__u32 destination_identity;
	__u32 ifindex;
	__u32 length;
	__u32 policy;
	__u32 pad;
};

/* log_allowed: a ring buffer of struct event: a new connection, once for each subject here whose policies allow it. Nobody
 * is woken: the agent reads it now and then.
 * log_denied: what was denied, or would have been but for audit, without the initiator's port -> how often; filled by the
 * programs, emptied by the agent. */
struct denied_key {
	struct addr initiator;
	struct addr responder;
	__u32 policy;
	__u32 round; /* SETTING_LOG_ROUND */
	__be16 responder_port;
	__u8 protocol;
	__u8 direction;
	__u32 audited; /* 1: it passed */
};

struct denied {
	__u64 count; /* packets; of audited ones, those that were judged */
	__u64 time;  /* ktime ns, of the first one */
	__u32 initiator_identity;
	__u32 responder_identity;
};

/* log_budget: one entry for the whole node: how many records came in this second, of LOG_RATE at most. */
struct log_budget {
	__u64 second;
	__u64 used;
};

#define LOG_RATE 500

enum hook {
	HOOK_FROM_POD,
	HOOK_TO_POD,
	HOOK_FROM_NETWORK,
	HOOK_SOCKET,
	HOOK_TO_NETWORK,
};
