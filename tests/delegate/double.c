/* A stand-in for libedgetpu: a TFLite delegate that takes `edgetpu-custom-op` and copies its first
 * input to its first output, or misbehaves in the ways that the real library is known for.
 *
 * What it does is read from one page of shared memory, the file `control` beside the library, which
 * a test writes to (double.py has the same layout). The page is mapped when the library is loaded,
 * so that a process which may open nothing afterwards still follows it, without a system call.
 *
 * The structures are those of TFLite's C interface, as far as they are used here: field order and
 * sizes must be the library's own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum mode {
    WORKS, SILENT_NULL, NULL_WITH_MESSAGE, INVOKE_FAILS, INVOKE_CRASHES, INVOKE_HANGS,
    CREATE_CRASHES, CREATE_HANGS
};

struct control {
    int32_t mode;
    int32_t unplugged;    /* creating gives NULL, running fails */
    int32_t exclusive;    /* creating gives NULL while another process has one: PCIe */
    int32_t fragile;      /* a second process breaks the first: USB */
    int32_t create_ms;    /* how long creating takes */
    int32_t invoke_us;    /* how long a run takes */
    int32_t fail_after;   /* so many runs more work, if not negative */
    int32_t owner;        /* process that has delegates, as it sees itself */
    int32_t open;         /* how many */
    int32_t broken;       /* the stick must be plugged in again */
    int64_t created;
    int64_t invoked;
};

struct ints { int size; int data[]; };
struct tensor {
    int type; void *data; struct ints *dims; struct { float scale; int32_t zero; } params;
    int allocation_type; size_t bytes; const void *allocation; const char *name; void *delegate;
    int handle; bool stale, variable; struct { int type; void *params; } quantization;
    void *sparsity; const struct ints *signature;
};
struct node {
    struct ints *inputs, *outputs, *intermediates, *temporaries;
    void *user_data, *builtin_data; const void *custom_data; int custom_size; void *delegate;
    bool side_effect;
};
struct context;
struct registration {
    void *(*init)(struct context *, const char *, size_t);
    void (*free)(struct context *, void *);
    int (*prepare)(struct context *, struct node *);
    int (*invoke)(struct context *, struct node *);
    const char *(*profiling)(const struct context *, const struct node *);
    int32_t builtin_code; const char *custom_name; int version;
    void *external, *async_kernel; uint64_t inplace;
};
struct delegate;
struct context {
    size_t tensors_size;
    int (*plan)(struct context *, struct ints **);
    struct tensor *tensors;
    void *impl;
    int (*resize)(struct context *, struct tensor *, struct ints *);
    void (*report)(struct context *, const char *, ...);
    int (*add_tensors)(struct context *, int, int *);
    int (*node)(struct context *, int, struct node **, struct registration **);
    int (*replace)(struct context *, struct registration, const struct ints *, struct delegate *);
};
struct delegate {
    void *data;
    int (*prepare)(struct context *, struct delegate *);
    void *copy_from, *copy_to, *free_handle;
    int64_t flags;
    void *opaque;
};

static const char OPERATOR[] = "edgetpu-custom-op";
static struct control quiet = { .fail_after = -1 }, *control = &quiet;

static void nap_us(int64_t us) {
    struct timespec span = { us / 1000000, us % 1000000 * 1000 };
    while (nanosleep(&span, &span) != 0) { }
}

static void hang(void) {
    for (;;) nap_us(1000000);
}

static void crash(void) {
    *(volatile int *)8 = 1;
}

__attribute__((constructor)) static void map_control(void) {
    Dl_info self;
    char path[4096];
    if (!dladdr((void *)map_control, &self)) return;
    const char *slash = strrchr(self.dli_fname, '/');
    int length = slash ? (int)(slash - self.dli_fname) : 1;
    snprintf(path, sizeof path, "%.*s/control", length, slash ? self.dli_fname : ".");
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *page = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) control = page;
    close(file);
}

static bool lives(int32_t process) {
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%d", process);
    return process != 0 && stat(path, &found) == 0;
}

static void *kernel_init(struct context *c, const char *b, size_t n) {
    (void)c, (void)b, (void)n;
    return NULL;
}

static void kernel_free(struct context *c, void *data) {
    (void)c, (void)data;
}

static int kernel_prepare(struct context *c, struct node *n) {
    (void)c, (void)n;
    return 0;
}

static int kernel_invoke(struct context *c, struct node *n) {
    __atomic_add_fetch(&control->invoked, 1, __ATOMIC_SEQ_CST);
    if (control->invoke_us) nap_us(control->invoke_us);
    bool spent = control->fail_after >= 0
        && __atomic_fetch_sub(&control->fail_after, 1, __ATOMIC_SEQ_CST) <= 0;
    if (spent) __atomic_store_n(&control->fail_after, 0, __ATOMIC_SEQ_CST);
    if (control->mode == INVOKE_CRASHES) crash();
    if (control->mode == INVOKE_HANGS) hang();
    if (spent || control->unplugged || control->broken || control->mode == INVOKE_FAILS) {
        c->report(c, "double: the device is lost");
        return 1;
    }
    struct tensor *from = &c->tensors[n->inputs->data[0]], *to = &c->tensors[n->outputs->data[0]];
    memcpy(to->data, from->data, from->bytes < to->bytes ? from->bytes : to->bytes);
    return 0;
}

static int take_nodes(struct context *c, struct delegate *own) {
    struct ints *plan;
    if (c->plan(c, &plan) != 0) return 1;
    /* The plan is gone after the next call. */
    int count = plan->size, *order = malloc(sizeof(int) * (size_t)(count + 1));
    struct ints *mine = malloc(sizeof(int) * (size_t)(count + 1));
    memcpy(order, plan->data, sizeof(int) * (size_t)count);
    mine->size = 0;
    for (int i = 0; i < count; i++) {
        struct node *node;
        struct registration *found;
        if (c->node(c, order[i], &node, &found) == 0 && found->custom_name
            && strcmp(found->custom_name, OPERATOR) == 0)
            mine->data[mine->size++] = order[i];
    }
    struct registration kernel = {
        .init = kernel_init, .free = kernel_free, .prepare = kernel_prepare,
        .invoke = kernel_invoke, .custom_name = "DELEGATE", .version = 1,
    };
    int status = mine->size ? c->replace(c, kernel, mine, own) : 0;
    free(mine);
    free(order);
    return status;
}

__attribute__((visibility("default"))) struct delegate *tflite_plugin_create_delegate(
    char **keys, char **values, size_t count, void (*report)(const char *)) {
    if (control->create_ms) nap_us(1000 * (int64_t)control->create_ms);
    if (control->mode == CREATE_CRASHES) crash();
    if (control->mode == CREATE_HANGS) hang();
    for (size_t i = 0; i < count; i++) {
        /* As the real one: only some devices are understood, and nothing is said about others. */
        if (strcmp(keys[i], "device") == 0 && values[i][0] && values[i][0] != ':'
            && strncmp(values[i], "usb", 3) != 0 && strncmp(values[i], "pci", 3) != 0)
            return NULL;
    }
    if (control->mode == NULL_WITH_MESSAGE && report) report("double: no such device");
    if (control->mode == SILENT_NULL || control->mode == NULL_WITH_MESSAGE) return NULL;
    if (control->unplugged || control->broken) return NULL;
    bool another = control->owner != getpid() && control->open > 0 && lives(control->owner);
    if (another && control->exclusive) return NULL;
    if (another && control->fragile) control->broken = 1;
    if (control->owner != getpid()) control->open = 0;
    control->owner = getpid();
    control->open++;
    control->created++;
    struct delegate *made = calloc(1, sizeof *made);
    made->prepare = take_nodes;
    made->flags = 1;
    return made;
}

__attribute__((visibility("default"))) void tflite_plugin_destroy_delegate(struct delegate *old) {
    if (old && control->owner == getpid() && control->open > 0) control->open--;
    free(old);
}

__attribute__((visibility("default"))) const char *edgetpu_version(void) {
    return "BuildLabel(double), RuntimeVersion(14)";
}
