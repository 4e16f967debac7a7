/* What binding.py uses of libvfio-user, for cffi (`...` : the compiler fills it in). */

typedef struct vfu_ctx vfu_ctx_t;

struct iovec {
    void *iov_base;
    size_t iov_len;
    ...;
};

typedef struct vfu_dma_info {
    struct iovec iova;
    void *vaddr;
    struct iovec mapping;
    uint32_t prot;
    ...;
} vfu_dma_info_t;

typedef enum {
    VFU_TRANS_SOCK,
    ...
} vfu_trans_t;

typedef enum {
    VFU_DEV_TYPE_PCI,
    ...
} vfu_dev_type_t;

typedef enum {
    VFU_PCI_TYPE_EXPRESS,
    ...
} vfu_pci_type_t;

typedef enum vfu_reset_type {
    VFU_RESET_DEVICE,
    VFU_RESET_LOST_CONN,
    ...
} vfu_reset_type_t;

enum vfu_dev_irq_type {
    VFU_DEV_INTX_IRQ,
    VFU_DEV_MSIX_IRQ,
    VFU_DEV_ERR_IRQ,
    VFU_DEV_REQ_IRQ,
    ...
};

enum {
    VFU_PCI_DEV_BAR0_REGION_IDX,
    VFU_PCI_DEV_BAR4_REGION_IDX,
    VFU_PCI_DEV_CFG_REGION_IDX,
    ...
};

#define LIBVFIO_USER_FLAG_ATTACH_NB ...
#define VFU_REGION_FLAG_RW ...
#define VFU_REGION_FLAG_MEM ...
#define VFU_REGION_FLAG_ALWAYS_CB ...
#define PCI_HEADER_TYPE_NORMAL ...
#define PROT_READ ...
#define PROT_WRITE ...

typedef ssize_t vfu_region_access_cb_t(vfu_ctx_t *ctx, char *buf, size_t count, int64_t offset, bool is_write);
typedef void vfu_log_fn_t(vfu_ctx_t *ctx, int level, const char *msg);
typedef int vfu_reset_cb_t(vfu_ctx_t *ctx, vfu_reset_type_t type);
typedef int vfu_device_quiesce_cb_t(vfu_ctx_t *ctx);
typedef void vfu_dma_register_cb_t(vfu_ctx_t *ctx, vfu_dma_info_t *info);
typedef void vfu_dma_unregister_cb_t(vfu_ctx_t *ctx, vfu_dma_info_t *info);
typedef void vfu_dev_irq_state_cb_t(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask);

vfu_ctx_t *vfu_create_ctx(vfu_trans_t trans, const char *path, int flags, void *pvt, vfu_dev_type_t type);
void vfu_destroy_ctx(vfu_ctx_t *ctx);
int vfu_realize_ctx(vfu_ctx_t *ctx);
int vfu_attach_ctx(vfu_ctx_t *ctx);
int vfu_run_ctx(vfu_ctx_t *ctx);
int vfu_get_poll_fd(vfu_ctx_t *ctx);
void *vfu_get_private(vfu_ctx_t *ctx);
int vfu_setup_log(vfu_ctx_t *ctx, vfu_log_fn_t *log, int level);
int vfu_pci_init(vfu_ctx_t *ctx, vfu_pci_type_t type, int header, int revision);
int vfu_setup_device_reset_cb(vfu_ctx_t *ctx, vfu_reset_cb_t *reset);
void vfu_setup_device_quiesce_cb(vfu_ctx_t *ctx, vfu_device_quiesce_cb_t *quiesce);
int vfu_setup_device_nr_irqs(vfu_ctx_t *ctx, enum vfu_dev_irq_type type, uint32_t count);
int vfu_setup_irq_state_callback(vfu_ctx_t *ctx, enum vfu_dev_irq_type type, vfu_dev_irq_state_cb_t *callback);
int vfu_irq_trigger(vfu_ctx_t *ctx, uint32_t vector);

/* Ours, in message.h and shim.h. */
enum nvmeemu_look {
    NVMEEMU_NOTHING,
    NVMEEMU_WHOLE,
    NVMEEMU_CHECK,
    NVMEEMU_PARTIAL,
    NVMEEMU_CHOKED,
    NVMEEMU_TORN,
    NVMEEMU_NONSENSE,
};

struct nvmeemu_message {
    uint16_t id, command;
    uint32_t size, flags, error;
    uint8_t body[32];
    int64_t file_size;
    uint64_t file_device, file_inode;
    bool descriptors_lost;
};

typedef bool nvmeemu_ring_t(void *engine, uint32_t doorbell, uint32_t value);
int nvmeemu_look(int fd, struct nvmeemu_message *message);
int nvmeemu_take_doorbells(int fd, nvmeemu_ring_t *ring, void *engine);
int nvmeemu_setup_region(vfu_ctx_t *ctx, int region, size_t size, vfu_region_access_cb_t *callback, int flags,
                         int fd, struct iovec shared);
int nvmeemu_setup_dma(vfu_ctx_t *ctx, vfu_dma_register_cb_t *added, vfu_dma_unregister_cb_t *removed);
void nvmeemu_barrier(void);
int nvmeemu_interrupt_fd(vfu_ctx_t *ctx, uint32_t vector);

extern "Python" {
    ssize_t on_bar0(vfu_ctx_t *, char *, size_t, int64_t, bool);
    ssize_t on_bar4(vfu_ctx_t *, char *, size_t, int64_t, bool);
    ssize_t on_config(vfu_ctx_t *, char *, size_t, int64_t, bool);
    int on_reset(vfu_ctx_t *, vfu_reset_type_t);
    int on_quiesce(vfu_ctx_t *);
    void on_dma_added(vfu_ctx_t *, vfu_dma_info_t *);
    void on_dma_removed(vfu_ctx_t *, vfu_dma_info_t *);
    void on_irq_state(vfu_ctx_t *, uint32_t, uint32_t, bool);
    void on_log(vfu_ctx_t *, int, const char *);
}
