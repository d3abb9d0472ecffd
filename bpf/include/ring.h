/* Consistent hashing: clients outside the cluster get the same backend at every node, and after what was known of their
 * connection is lost. See node_agent/ring.py for how backends are placed. */
#pragma once

/* Of the smallest rings an eighth may be taken: (7/8)^64 of the connections find nobody in so many draws. */
#define RING_DRAWS 64
#define RING_STEP 0x9e3779b9

static u32 rotate(u32 word, u32 bits)
{
	return word << bits | word >> (32 - bits);
}

/* One word more into a hash (MurmurHash3's way). */
static u32 mix(u32 hash, u32 word)
{
	hash ^= rotate(word * 0xcc9e2d51, 15) * 0x1b873593;
	return rotate(hash, 13) * 5 + 0xe6546b64;
}

static u32 finish_hash(u32 hash)
{
	hash = (hash ^ hash >> 16) * 0x85ebca6b;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

static u32 mix_addr(u32 hash, const struct addr *addr)
{
	return mix(mix(mix(mix(hash, addr->w[0]), addr->w[1]), addr->w[2]), addr->w[3]);
}

/* The connection; with session affinity all of the client's towards the Service. */
static u32 hash_connection(struct flow *flow, struct service *service)
{
	u32 hash = mix(mix_addr(0, &flow->source), flow->protocol);
	if (service->affinity_seconds)
		return hash;
	hash = mix_addr(hash, &flow->destination);
	return mix(hash, (u32)flow->source_port << 16 | flow->destination_port);
}

/* The slot in which the search for a backend begins, below `count` where somebody stands on the ring. */
static u32 slot_by_ring(struct flow *flow, u32 service_id, struct service *service)
{
	struct ring_key *key = &flow->ring_key;
	u32 hash = hash_connection(flow, service), mask = service->positions - 1;
	key->service = service_id;
	LOOP for (u32 i = 0; i < RING_DRAWS; i++) {
		key->position = finish_hash(hash + i * RING_STEP) & mask;
		u32 *slot = ring.lookup(key);
		if (slot)
			return *slot;
	}
	return hash;
}
