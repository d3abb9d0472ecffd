/* UDP packets of a pod, put on its device as they are: no socket stands between them and the program behind it.
 *
 *   flood DEVICE GATEWAY-MAC SOURCE DESTINATION PORT FIRST-SOURCE-PORT SOURCE-PORTS RATE MILLISECONDS
 *
 * Source ports are taken in turn. IPv4. Prints how many packets went, and in how many nanoseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define DATA 18 /* to the smallest frame of Ethernet */
#define NAP 200000 /* ns; shorter ones cost more than they save */

struct frame {
	struct ether_header ether;
	struct iphdr ip;
	struct udphdr udp;
	char data[DATA];
} __attribute__((packed));

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static uint16_t checksum(const void *start, size_t size)
{
	const uint16_t *words = start;
	uint32_t sum = 0;
	for (size_t i = 0; i < size / 2; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

static struct frame draft(int device, const char *name, char **words)
{
	struct frame frame = { .ether.ether_type = htons(ETHERTYPE_IP) };
	struct ifreq own = { 0 };
	unsigned char *mac = frame.ether.ether_dhost;
	strncpy(own.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(device, SIOCGIFHWADDR, &own))
		fail(name);
	memcpy(frame.ether.ether_shost, own.ifr_hwaddr.sa_data, ETH_ALEN);
	if (sscanf(words[0], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != ETH_ALEN)
		fail(words[0]);
	frame.ip = (struct iphdr){ .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP };
	frame.ip.tot_len = htons(sizeof(frame) - sizeof(frame.ether));
	if (inet_pton(AF_INET, words[1], &frame.ip.saddr) != 1 || inet_pton(AF_INET, words[2], &frame.ip.daddr) != 1)
		fail("address");
	frame.ip.check = checksum(&frame.ip, sizeof(frame.ip));
	frame.udp.dest = htons(atoi(words[3]));
	frame.udp.len = htons(sizeof(frame.udp) + DATA); /* without a checksum, as IPv4 has it */
	return frame;
}

static int open_device(const char *name)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(name) };
	int device = socket(AF_PACKET, SOCK_RAW, 0);
	if (device < 0 || !at.sll_ifindex || bind(device, (struct sockaddr *)&at, sizeof(at)))
		fail(name);
	return device;
}

/* As many as are due, in one call at most BATCH; those that the device has no room for are not counted. */
static int send_some(int device, struct mmsghdr *messages, unsigned due)
{
	int sent = sendmmsg(device, messages, due < BATCH ? due : BATCH, 0);
	if (sent < 0)
		fail("send");
	return sent;
}

int main(int count, char **words)
{
	static struct frame frames[BATCH];
	static struct mmsghdr messages[BATCH];
	static struct iovec parts[BATCH];
	if (count != 10) {
		fprintf(stderr, "usage: flood DEVICE GATEWAY-MAC SOURCE DESTINATION PORT FIRST PORTS RATE MILLISECONDS\n");
		return 2;
	}
	unsigned first = atoi(words[6]), ports = atoi(words[7]);
	double rate = strtod(words[8], NULL);
	uint64_t duration = strtoull(words[9], NULL, 10) * 1000000ULL, sent = 0, passed;
	int device = open_device(words[1]);
	for (int i = 0; i < BATCH; i++) {
		frames[i] = draft(device, words[1], words + 2);
		parts[i] = (struct iovec){ &frames[i], sizeof(frames[i]) };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1 };
	}
	uint64_t start = now();
	while ((passed = now() - start) < duration) {
		uint64_t due = passed / 1e9 * rate;
		if (due <= sent) {
			struct timespec nap = { .tv_nsec = NAP };
			nanosleep(&nap, NULL);
			continue;
		}
		for (int i = 0; i < BATCH; i++)
			frames[i].udp.source = htons(first + (sent + i) % ports);
		sent += send_some(device, messages, due - sent);
	}
	printf("%llu %llu\n", (unsigned long long)sent, (unsigned long long)passed);
	return 0;
}
