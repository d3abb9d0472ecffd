/* One end of the load that is measured, as cheap as sockets allow; TCP, numeric addresses.
 *
 *   load serve ADDRESS PORT                            one connection after the other; prints "ready"
 *   load connections ADDRESS PORT MILLISECONDS         connect, one byte there and back, the server closes, close
 *   load requests ADDRESS PORT MILLISECONDS            one connection; one byte there and back
 *
 * Clients print how many of these they did, and in how many nanoseconds.
 */
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LAST 'l' /* the server closes after this one */
#define MORE 'm'
#define WARMUP 20 /* not counted: neighbours are resolved, caches filled */
#define PATIENCE 5 /* seconds without an answer */

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct addrinfo *resolve(const char *address, const char *port)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM }, *found;
	int error = getaddrinfo(address, port, &hints, &found);
	if (error) {
		fprintf(stderr, "%s port %s: %s\n", address, port, gai_strerror(error));
		exit(1);
	}
	return found;
}

static unsigned long long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* Of all machines the same congestion control, and none that paces: its timers would be measured, too. */
static int open_socket(int family)
{
	static const char control[] = "reno";
	int one = 1, made = socket(family, SOCK_STREAM, 0);
	if (made < 0)
		fail("socket");
	if (setsockopt(made, IPPROTO_TCP, TCP_CONGESTION, control, strlen(control)))
		fail("congestion control reno");
	setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return made;
}

static int open_client(const struct addrinfo *server)
{
	struct timeval patience = { .tv_sec = PATIENCE };
	int client = open_socket(server->ai_family);
	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(client, server->ai_addr, server->ai_addrlen))
		fail("connect");
	return client;
}

static void ask(int client, char byte)
{
	if (send(client, &byte, 1, MSG_NOSIGNAL) != 1)
		fail("send");
	if (recv(client, &byte, 1, 0) != 1)
		fail("no answer");
}

static void make_connection(const struct addrinfo *server)
{
	char byte;
	int client = open_client(server);
	ask(client, LAST);
	if (recv(client, &byte, 1, 0) != 0)
		fail("the server did not close");
	close(client);
}

static void drive(const struct addrinfo *server, bool connections, unsigned long long duration)
{
	int client = connections ? -1 : open_client(server);
	unsigned long long count = 0, start = 0, passed = 0;
	for (int warmup = WARMUP; warmup || passed < duration;) {
		if (connections)
			make_connection(server);
		else
			ask(client, MORE);
		if (warmup) {
			if (!--warmup)
				start = now();
			continue;
		}
		count++;
		passed = now() - start;
	}
	printf("%llu %llu\n", count, passed);
}

static void answer(int connection)
{
	char byte;
	while (recv(connection, &byte, 1, 0) == 1) {
		if (send(connection, &byte, 1, MSG_NOSIGNAL) != 1 || byte == LAST)
			break;
	}
	close(connection);
}

static void serve(const struct addrinfo *at)
{
	int one = 1, listener = open_socket(at->ai_family);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, at->ai_addr, at->ai_addrlen))
		fail("bind");
	if (listen(listener, 128))
		fail("listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int connection = accept(listener, NULL, NULL);
		if (connection < 0)
			fail("accept");
		answer(connection);
	}
}

int main(int count, char **words)
{
	if (count == 4 && !strcmp(words[1], "serve")) {
		serve(resolve(words[2], words[3]));
	} else if (count == 5 && (!strcmp(words[1], "connections") || !strcmp(words[1], "requests"))) {
		drive(resolve(words[2], words[3]), words[1][0] == 'c', strtoull(words[4], NULL, 10) * 1000000ULL);
		return 0;
	}
	fprintf(stderr, "usage: load serve ADDRESS PORT | load connections|requests ADDRESS PORT MILLISECONDS\n");
	return 2;
}
