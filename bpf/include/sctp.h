/* SCTP's checksum (RFC 9260, 6.8): a CRC32c over the whole packet, without addresses. A CRC is linear: for another port
 * it changes by the CRC of the difference alone, which is the difference times x^(8 * length of the packet), modulo the
 * polynomial. Bits are reflected: x^0 is the highest one. */
#pragma once

#define SCTP_CHECKSUM 8
#define SCTP_HEADER 12
#define SCTP_INIT 1

#define CRC32C 0x82f63b78

/* Whether the packet opens an association: INIT is always alone in its packet. */
static bool is_sctp_init(struct __sk_buff *skb, struct flow *flow)
{
	u8 type = 0;
	return !bpf_skb_load_bytes(skb, flow->l4 + SCTP_HEADER, &type, 1) && type == SCTP_INIT;
}

/* The product of two polynomials. Without branches, which the verifier would follow all. */
static u32 crc_multiply(u32 a, u32 b)
{
	u32 product = 0;
	LOOP for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = (b >> 1) ^ (CRC32C & -(b & 1));
	}
	return product;
}

/* Times x^(8 * bytes), by the powers x^8, x^16, x^32 …: times 1 where that bit of the length is not set. */
static u32 crc_shift(u32 crc, u32 bytes)
{
#define CRC_ONE 0x80000000U
#define CRC_POWER(bit, power) crc = crc_multiply(crc, CRC_ONE ^ ((CRC_ONE ^ (power)) & -((bytes >> (bit)) & 1)));
	CRC_POWER(0, 0x00800000)
	CRC_POWER(1, 0x00008000)
	CRC_POWER(2, 0x82f63b78)
	CRC_POWER(3, 0x6ea2d55c)
	CRC_POWER(4, 0x18b8ea18)
	CRC_POWER(5, 0x510ac59a)
	CRC_POWER(6, 0xb82be955)
	CRC_POWER(7, 0xb8fdb1e7)
	CRC_POWER(8, 0x88e56f72)
	CRC_POWER(9, 0x74c360a4)
	CRC_POWER(10, 0xe4172b16)
	if (bytes >> 11 == 0)
		return crc;
	CRC_POWER(11, 0x0d65762a)
	CRC_POWER(12, 0x35d73a62)
	CRC_POWER(13, 0x28461564)
	CRC_POWER(14, 0xbf455269)
	CRC_POWER(15, 0xe2ea32dc)
	return crc;
}

/* Brings the checksum of a whole packet up to date, in whose header the word of the ports changes by these bits. */
static bool sum_sctp(struct __sk_buff *skb, struct flow *flow, u32 change)
{
	u32 crc = 0;
	/* The length of a fragmented packet is not known before its last fragment. */
	if (flow->fragment != FRAGMENT_NONE)
		return refuse(flow, REASON_SCTP_FRAGMENT);
	if (bpf_skb_load_bytes(skb, flow->l4 + SCTP_CHECKSUM, &crc, sizeof(crc)))
		return refuse(flow, REASON_MALFORMED);
	crc ^= crc_shift(change, flow->total - (flow->l4 - IP_AT));
	return !bpf_skb_store_bytes(skb, flow->l4 + SCTP_CHECKSUM, &crc, sizeof(crc), BPF_F_RECOMPUTE_CSUM) ||
	       refuse(flow, REASON_MALFORMED);
}
