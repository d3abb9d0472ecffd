/* All maps. Each is pinned under <bpffs>/maps/<its name>.
 *
 * SIZE_<map> is the number of entries; the loader's --size <map>=N takes the place of these defaults, which no code depends on.
 * OWNED_BY_PROGRAMS lists the maps that programs fill, all others are the agent's: where a definition changes, the loader
 * carries entries over by the names of fields, and for a map of the agent programs wait until it is filled (docs/upgrade.md).
 */
#pragma once

#ifndef SIZE_endpoints
#define SIZE_endpoints 262144
#endif
#ifndef SIZE_devices
#define SIZE_devices 256
#endif
#ifndef SIZE_frontends
#define SIZE_frontends 131072
#endif
#ifndef SIZE_services
#define SIZE_services 65536
#endif
#ifndef SIZE_backends
#define SIZE_backends 524288
#endif
#ifndef SIZE_slots
#define SIZE_slots 524288
#endif
#ifndef SIZE_ring
#define SIZE_ring 262144
#endif
#ifndef SIZE_affinities
#define SIZE_affinities 65536
#endif
#ifndef SIZE_source_ranges
#define SIZE_source_ranges 65536
#endif
#ifndef SIZE_non_masquerade
#define SIZE_non_masquerade 65536
#endif
#ifndef SIZE_subjects
#define SIZE_subjects 16384
#endif
#ifndef SIZE_rules
#define SIZE_rules 65536
#endif
#ifndef SIZE_members
#define SIZE_members 1048576
#endif
#ifndef SIZE_peer_blocks
#define SIZE_peer_blocks 262144
#endif
#ifndef SIZE_connections
#define SIZE_connections 131072
#endif
#ifndef SIZE_connections_new
#define SIZE_connections_new 65536
#endif
#ifndef SIZE_translations
#define SIZE_translations 65536
#endif
#ifndef SIZE_masquerades
#define SIZE_masquerades 65536
#endif
#ifndef SIZE_masqueraded
#define SIZE_masqueraded 65536
#endif
#ifndef SIZE_socket_peers
#define SIZE_socket_peers 65536
#endif
#ifndef SIZE_fragments
#define SIZE_fragments 4096
#endif
/* Ring buffers: in pages of 4096 bytes, a power of two. */
#ifndef SIZE_events_drops
#define SIZE_events_drops 64
#endif
#ifndef SIZE_events_verdicts
#define SIZE_events_verdicts 256
#endif
#ifndef SIZE_log_allowed
#define SIZE_log_allowed 64
#endif
/* What the log's rate lets in within 5 s, and as many that the agent has not read yet. */
#ifndef SIZE_log_denied
#define SIZE_log_denied 8192
#endif

#define OWNED_BY_PROGRAMS connections connections_new translations affinities masquerades masqueraded socket_peers fragments \
	counters events_drops events_verdicts events_lost log_allowed log_denied log_budget

/* Hash maps take memory as they fill, not beforehand. */
#define MAP_HASH(name, key, value) BPF_F_TABLE("hash", key, value, name, SIZE_##name, BPF_F_NO_PREALLOC)
#define MAP_LPM(name, key, value) BPF_F_TABLE("lpm_trie", key, value, name, SIZE_##name, BPF_F_NO_PREALLOC)
#define MAP_LRU(name, key, value) BPF_F_TABLE("lru_hash", key, value, name, SIZE_##name, 0)
#define MAP_ARRAY(kind, name, value, size) BPF_F_TABLE(kind, u32, value, name, size, 0)

/* Not pinned: each generation of programs has its own. */
#define MAP_PRIVATE(kind, name, value, size) BPF_F_TABLE(kind, u32, value, name, size, 0)

/* Like BPF_RINGBUF_OUTPUT, but with the type of what is in it. */
#define MAP_RINGBUF(name, value)                           \
	struct name##_table_t {                            \
		int key;                                   \
		value leaf;                                \
		int (*ringbuf_output)(void *, u64, u64);   \
		void *(*ringbuf_reserve)(u64);             \
		void (*ringbuf_discard)(void *, u64);      \
		void (*ringbuf_submit)(void *, u64);       \
		u32 max_entries;                           \
	};                                                 \
	__attribute__((section("maps/ringbuf"))) \
	struct name##_table_t name = { .max_entries = SIZE_##name * 4096 }

/* Entries in arrays whose number the code decides. */
#define COUNTERS 64

MAP_HASH(endpoints, struct addr, struct endpoint);
MAP_HASH(devices, u32, struct device);
MAP_HASH(frontends, struct frontend_key, struct frontend);
MAP_HASH(services, u32, struct service);
MAP_HASH(backends, struct backend_key, struct backend);
MAP_HASH(slots, struct slot_key, u32);
MAP_HASH(ring, struct ring_key, u32);
MAP_LPM(source_ranges, struct source_range_key, u32);
MAP_LPM(non_masquerade, struct cidr_key, u32);
MAP_HASH(subjects, u32, struct subject);
MAP_HASH(rules, struct rule_key, struct rule);
MAP_HASH(members, struct member_key, u32);
MAP_LPM(peer_blocks, struct peer_block_key, u32);

MAP_LRU(connections, struct tuple, struct connection);
MAP_LRU(connections_new, struct tuple, struct connection);
MAP_LRU(translations, struct translation_key, struct translation);
MAP_LRU(affinities, struct affinity_key, struct affinity);
MAP_LRU(masquerades, struct masquerade_key, __be16);
MAP_LRU(masqueraded, struct masqueraded_key, struct masqueraded);
MAP_LRU(socket_peers, struct socket_peer_key, struct socket_peer);
MAP_LRU(fragments, struct fragment_key, struct fragment_ports);

MAP_ARRAY("array", settings, u64, SETTINGS);
MAP_ARRAY("percpu_array", counters, struct counter, COUNTERS);
/* Events that found no room: in their ring buffers, or in the log beside LOG_RATE others of the second. */
#define LOST_DROPS 0
#define LOST_VERDICTS 1
#define LOST_ALLOWED 2
#define LOST_DENIED 3
#define LOST_AUDITED 4
MAP_ARRAY("percpu_array", events_lost, struct counter, 5);
MAP_ARRAY("array", log_budget, struct log_budget, 1);
MAP_HASH(log_denied, struct denied_key, struct denied);

MAP_RINGBUF(events_drops, struct event);
MAP_RINGBUF(events_verdicts, struct event);
MAP_RINGBUF(log_allowed, struct event);
