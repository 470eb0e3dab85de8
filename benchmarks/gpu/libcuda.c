/* A CUDA driver without a device: every call succeeds, and launches are counted but not run.
   It answers questions about the device as an H100 does. */
#include <stddef.h>
#include <stdint.h>

enum { kRegisters = 12, kMultiprocessors = 16, kMajor = 75, kMinor = 76, kShared = 81, kOptIn = 97 };

static long launches;
long stub_launches(void) { return launches; }

/* Called with each launch: the function, the grid, threads, shared memory, and the
   addresses of the arguments. */
typedef void (*Observer)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, void**);
static Observer observer;
void stub_observe(Observer function) { observer = function; }

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuGetErrorString(int error, const char** text) { return *text = "no error", 0; }

int cuDeviceGet(int* device, int ordinal) { return *device = 0, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case kMajor: *value = 9; break;
    case kMinor: *value = 0; break;
    case kOptIn: *value = 227 * 1024; break;
    case kShared: *value = 228 * 1024; break;
    case kMultiprocessors: *value = 132; break;
    case kRegisters: *value = 65536; break;
    default: *value = 1024;
  }
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)1, 0; }
int cuCtxGetCurrent(void** context) { return *context = (void*)1, 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuCtxGetDevice(int* device) { return *device = 0, 0; }
int cuCtxGetLimit(size_t* limit, int which) { return *limit = 1 << 20, 0; }
int cuCtxSetLimit(int which, size_t limit) { return 0; }

int cuModuleLoadData(void** module, const void* image) { return *module = (void*)2, 0; }
int cuModuleUnload(void* module) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  return *function = (void*)3, 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  return *value = attribute == 0 ? 1024 : 32, 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void* function, int config) { return 0; }

int cuPointerGetAttribute(void* value, int attribute, uint64_t pointer) {
  return *(uint64_t*)value = pointer, 0;
}
int cuStreamIsCapturing(void* stream, int* status) { return *status = 0, 0; }
int cuOccupancyMaxActiveClusters(int* count, void* function, const void* config) {
  return *count = 1, 0;
}
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                   void* stream, void** arguments, void** extra) {
  if (observer) observer(function, grid_x, grid_y, grid_z, block_x, shared, arguments);
  return launches++, 0;
}
int cuLaunchKernelEx(const void* config, void* function, void** arguments, void** extra) {
  return launches++, 0;
}
