// The CUDA side of registration: device, stream and errors. One library serves torch with and
// without CUDA, so nothing here may link libtorch_cuda or libc10_cuda; the current stream is looked
// up at run time.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include "common/tensor.h"

namespace robustcore {

inline void check_cuda(cudaError_t error, const char* what) {
  RC_CHECK(error == cudaSuccess, "robustcore: ", what, ": ", cudaGetErrorString(error));
}

// Makes a tensor's device current for the calls of a scope, and puts the previous one back.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& tensor) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    device_ = tensor.get_device_index();
    if (device_ != previous_) check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceScope() {
    if (device_ != previous_) (void)cudaSetDevice(previous_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  // torch's current stream on this device.
  cudaStream_t stream() const {
    using Lookup = int32_t (*)(int32_t, void**);
    static const Lookup lookup = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
      return library
                 ? reinterpret_cast<Lookup>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                 : nullptr;
    }();
    RC_CHECK(lookup != nullptr, "robustcore: this torch has no CUDA, yet a CUDA tensor came");
    void* stream = nullptr;
    RC_CHECK(lookup(device_, &stream) == 0, "robustcore: torch's current stream is not available");
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int previous_ = 0;
  int device_ = 0;
};

}  // namespace robustcore
