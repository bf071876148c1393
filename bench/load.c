/* Sends messages to a broker, checks every answer, and prints what it saw as one JSON object.
 *
 *   load PORT QOS EPOCH ANSWERS FILE window N     COUNT LIMIT_MS DRAIN_MS   N messages in flight
 *   load PORT QOS EPOCH ANSWERS FILE rate   PER_S COUNT LIMIT_MS DRAIN_MS   on a schedule
 *   load PORT QOS EPOCH ANSWERS FILE first  PER_S COUNT LIMIT_MS DRAIN_MS   up to the first answer
 *
 * Nothing more is sent after COUNT messages or LIMIT_MS; the last answers have DRAIN_MS to come.
 * ANSWERS is the topic of the answers. EPOCH (0..99) tells a run's ids from those of the run before.
 * FILE, little-endian: u32 messages; of each: u32 topic bytes, u32 payload bytes, i32 offset of the
 * eight digits of the id (-1: no id), u32 floats; topic, payload, the floats that must be answered.
 * Without an id an answer belongs to the oldest message whose floats it has.
 *
 * MQTT 3.1.1, clean session. Everything due is sent in one write, after the acknowledgements.
 * TCP_QUICKACK is armed after each read, so that a stall seen here is not made here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { IN_BYTES = 1 << 20, OUT_BYTES = 8 << 20, MAX_FLOATS = 64, PER_EPOCH = 1000000 };
enum { CONNACK = 2, PUBLISH = 3, PUBACK = 4, SUBACK = 9 };
#define TOLERANCE 2e-3f

struct message {          /* a whole PUBLISH packet and what must come back */
    uint8_t *packet;
    size_t size, packet_id_at, id_at; /* id_at 0: no id */
    uint32_t floats;
    float wanted[MAX_FLOATS];
};

static struct message *messages;
static uint32_t kinds;
static int fd, qos;
static long epoch, count;
static double started, limit_s, drain_s;
static double *sent_at, *arrived_at;   /* seconds since `started`; arrived_at < 0: not yet */
static char *version;
static int subscribed;
static long sent, answered, oldest, highest = -1;
static long duplicates, split, stray, wrong, disordered;
static uint8_t *in, *out;
static size_t in_used, out_used;

static void die(const char *what) {
    fprintf(stderr, "load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static double clock_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *need(void *memory) {
    if (!memory) die("no memory");
    return memory;
}

/* -- out ------------------------------------------------------------------------------------- */

static void put(const void *bytes, size_t size) {
    if (out_used + size > OUT_BYTES) die("more to send at once than fits");
    memcpy(out + out_used, bytes, size);
    out_used += size;
}

static void flush(void) {
    size_t done = 0;
    while (done < out_used) {
        ssize_t n = send(fd, out + done, out_used - done, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) die("send");
        if (n > 0) done += n;
    }
    out_used = 0;
}

static size_t put_length(uint8_t *at, size_t length) {
    size_t n = 0;
    do {
        at[n] = length % 128;
        length /= 128;
        if (length) at[n] |= 128;
        n++;
    } while (length);
    return n;
}

static void send_message(double at) {
    struct message *m = &messages[sent % kinds];
    if (qos) {
        uint16_t packet_id = sent % 65535 + 1;
        m->packet[m->packet_id_at] = packet_id >> 8;
        m->packet[m->packet_id_at + 1] = packet_id & 255;
    }
    if (m->id_at) {
        long id = epoch * PER_EPOCH + sent;
        for (int digit = 7; digit >= 0; digit--, id /= 10) m->packet[m->id_at + digit] = '0' + id % 10;
    }
    put(m->packet, m->size);
    sent_at[sent++] = at;
}

/* -- in -------------------------------------------------------------------------------------- */

static const uint8_t *after(const uint8_t *body, size_t size, const char *key) {
    size_t length = strlen(key);
    const uint8_t *at = memmem(body, size, key, length);
    if (!at) return NULL;
    at += length;
    while (at < body + size && *at == ' ') at++;
    return at;
}

static int as_wanted(const struct message *m, const float *got) {
    for (uint32_t i = 0; i < m->floats; i++)
        if (!(fabsf(got[i] - m->wanted[i]) <= TOLERANCE)) return 0;
    return 1;
}

static int json_as_wanted(const struct message *m, const uint8_t *body, size_t size) {
    float got[MAX_FLOATS];
    const char *at = (const char *)after(body, size, "\"data\":");
    if (!at) return 0;
    for (uint32_t i = 0; i < m->floats; i++) {
        char *end;
        while (*at == '[' || *at == ',' || *at == ' ') at++;
        got[i] = strtof(at, &end);
        if (end == at) return 0;
        at = end;
    }
    return as_wanted(m, got);
}

static void count_answer(long number, double now, char from) {
    if (arrived_at[number] >= 0) {
        duplicates++;
        if (version[number] != from) split++;
        return;
    }
    arrived_at[number] = now;
    version[number] = from;
    answered++;
    if (number < highest) disordered++;
    else highest = number;
    while (oldest < sent && arrived_at[oldest] >= 0) oldest++;
}

static void answer_with_id(const uint8_t *body, size_t size, double now) {
    const uint8_t *id = after(body, size, "\"id\":");
    const uint8_t *from = after(body, size, "\"model_version\":");
    long number = id && *id == '"' ? strtol((const char *)id + 1, NULL, 10) - epoch * PER_EPOCH : -1;
    if (number < 0 || number >= sent) {
        stray++;
        return;
    }
    if (!json_as_wanted(&messages[number % kinds], body, size)) wrong++;
    count_answer(number, now, from && *from == '"' ? (char)from[1] : '?');
}

static void answer_without_id(const uint8_t *body, size_t size, double now) {
    float got[MAX_FLOATS];
    for (long number = oldest; number < sent; number++) {
        const struct message *m = &messages[number % kinds];
        if (arrived_at[number] >= 0) continue;
        if (size != m->floats * sizeof(float)) break;
        memcpy(got, body, size);
        if (as_wanted(m, got)) {
            count_answer(number, now, '?');
            return;
        }
    }
    wrong++;
}

static void publish_received(int flags, uint8_t *body, size_t size, double now) {
    size_t at = 2 + (body[0] << 8 | body[1]);
    if (flags & 6) {
        uint8_t ack[4] = {PUBACK << 4, 2, body[at], body[at + 1]};
        put(ack, sizeof ack);
        at += 2;
    }
    if (at > size) die("a packet that is not one");
    uint8_t kept = body[size];
    body[size] = 0; /* strtof must end here */
    if (messages[0].id_at) answer_with_id(body + at, size - at, now);
    else answer_without_id(body + at, size - at, now);
    body[size] = kept;
}

/* Takes the whole packets out of `in`. */
static void parse(double now) {
    size_t at = 0;
    while (in_used - at >= 2) {
        size_t length = 0, n = 1;
        int shift = 0;
        while (at + n < in_used && n < 5) {
            length |= (size_t)(in[at + n] & 127) << shift;
            shift += 7;
            if (!(in[at + n++] & 128)) {
                shift = -1;
                break;
            }
        }
        if (shift >= 0 || at + n + length > in_used) break;
        int type = in[at] >> 4;
        if (type == PUBLISH) publish_received(in[at] & 15, in + at + n, length, now);
        if (type == SUBACK) subscribed = 1;
        if (type == CONNACK && in[at + n + 1]) die("the broker refused the connection");
        at += n + length;
    }
    memmove(in, in + at, in_used - at);
    in_used -= at;
}

static void take(ssize_t n) {
    if (n <= 0) die("the broker closed the connection");
    if (qos) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
    }
    in_used += n;
    parse(clock_s() - started);
}

/* Waits until `until` for something to read, and takes it. */
static void receive(double until) {
    double left = until - clock_s();
    struct timespec wait = {0, 0};
    struct pollfd poll_in = {fd, POLLIN, 0};
    if (left > 0) {
        wait.tv_sec = (time_t)left;
        wait.tv_nsec = (long)((left - wait.tv_sec) * 1e9);
    }
    if (ppoll(&poll_in, 1, &wait, NULL) > 0) take(recv(fd, in + in_used, IN_BYTES - in_used, 0));
}

/* -- runs ------------------------------------------------------------------------------------ */

static void run_window(long in_flight) {
    /* One call less than with ppoll: at one in flight that is a quarter of the cost. */
    struct timeval silence = {(time_t)drain_s, (suseconds_t)(fmod(drain_s, 1) * 1e6)};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence);
    double now = 0;
    while (answered < (now < limit_s ? count : sent)) {
        while (sent < count && sent - answered < in_flight && now < limit_s) send_message(now);
        flush();
        ssize_t n = recv(fd, in + in_used, IN_BYTES - in_used, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        take(n);
        now = clock_s() - started;
    }
    flush();
}

static void run_schedule(double per_s, int first_only) {
    double now = 0, last_due = fmin(count / per_s, limit_s);
    while (answered < count && !(first_only && answered) && now <= last_due + drain_s) {
        while (sent < count && sent / per_s <= fmin(now, last_due)) send_message(sent / per_s);
        flush();
        int more = sent < count && sent / per_s <= last_due;
        if (!more && answered == sent) break;
        receive(started + (more ? sent / per_s : last_due + drain_s + 0.001));
        now = clock_s() - started;
    }
    flush();
}

/* -- before and after ------------------------------------------------------------------------ */

static void read_messages(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fread(&kinds, 4, 1, file) != 1) die(path);
    messages = need(calloc(kinds, sizeof *messages));
    for (struct message *m = messages; m < messages + kinds; m++) {
        uint32_t head[4]; /* topic, payload, id offset, floats */
        if (fread(head, 4, 4, file) != 4 || head[3] > MAX_FLOATS) die(path);
        size_t body = 2 + head[0] + (qos ? 2 : 0) + head[1];
        m->packet = need(malloc(body + 5));
        m->packet[0] = PUBLISH << 4 | qos << 1;
        size_t at = 1 + put_length(m->packet + 1, body);
        m->packet[at++] = head[0] >> 8;
        m->packet[at++] = head[0] & 255;
        if (fread(m->packet + at, 1, head[0], file) != head[0]) die(path);
        at += head[0];
        m->packet_id_at = at;
        at += qos ? 2 : 0;
        if (fread(m->packet + at, 1, head[1], file) != head[1]) die(path);
        m->id_at = (int32_t)head[2] < 0 ? 0 : at + head[2];
        m->size = at + head[1];
        m->floats = head[3];
        if (fread(m->wanted, 4, head[3], file) != head[3]) die(path);
    }
    fclose(file);
}

static void connect_to(int port, const char *answers) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("no broker");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    static const uint8_t hello[] = {0x10, 16, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 4, 'l', 'o', 'a', 'd'};
    put(hello, sizeof hello);
    size_t length = strlen(answers);
    uint8_t subscribe[] = {0x82, 5 + length, 0, 1, 0, length}, granted = qos;
    if (length > 120) die("the topic of the answers is too long");
    put(subscribe, sizeof subscribe);
    put(answers, length);
    put(&granted, 1);
    flush();
    for (double until = clock_s() + 5; !subscribed; receive(until))
        if (clock_s() > until) die("the broker did not answer");
}

static void print_series(const char *name, const double *values, const double *minus) {
    printf(",\"%s\":[", name);
    for (long i = 0; i < sent; i++) {
        if (arrived_at[i] < 0 && minus) printf("%snull", i ? "," : "");
        else printf("%s%.1f", i ? "," : "", (values[i] - (minus ? minus[i] : 0)) * 1e6);
    }
    printf("]");
}

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void report(double wall_s, double cpu_s, int with_times) {
    printf("{\"sent\":%ld,\"answered\":%ld,\"duplicates\":%ld,\"split\":%ld,\"stray\":%ld,\"wrong\":%ld,"
           "\"disordered\":%ld,\"started_s\":%.6f,\"wall_s\":%.6f,\"cpu_s\":%.6f",
           sent, answered, duplicates, split, stray, wrong, disordered, started, wall_s, cpu_s);
    print_series("latency_us", arrived_at, sent_at);
    if (with_times) {
        print_series("sent_us", sent_at, NULL);
        printf(",\"versions\":\"%.*s\"", (int)sent, version);
    }
    printf("}\n");
}

int main(int argc, char **argv) {
    if (argc != 11) die("see the head of load.c");
    qos = atoi(argv[2]);
    epoch = atol(argv[3]);
    const char *mode = argv[6];
    count = atol(argv[8]);
    limit_s = atof(argv[9]) / 1e3;
    drain_s = atof(argv[10]) / 1e3;
    if (count < 1 || count > PER_EPOCH) die("COUNT is not in 1..1000000");
    prctl(PR_SET_TIMERSLACK, 1);
    in = need(malloc(IN_BYTES + 1));
    out = need(malloc(OUT_BYTES));
    sent_at = need(calloc(count, sizeof *sent_at));
    arrived_at = need(calloc(count, sizeof *arrived_at));
    version = need(calloc(count, 1));
    for (long i = 0; i < count; i++) arrived_at[i] = -1, version[i] = '-';
    read_messages(argv[5]);
    connect_to(atoi(argv[1]), argv[4]);
    double cpu_before = cpu();
    started = clock_s();
    if (!strcmp(mode, "window")) run_window(atol(argv[7]));
    else run_schedule(atof(argv[7]), !strcmp(mode, "first"));
    report(clock_s() - started, cpu() - cpu_before, strcmp(mode, "window"));
    return 0;
}
