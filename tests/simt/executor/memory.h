// Memory as kernels see it: buffers that end (or begin) at an inaccessible page, and the shared
// memory of the running block, poisoned and fenced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace robustcore::simt::host {

enum class Placement {
  // The last byte lies just before inaccessible memory: any access past the end faults. The start
  // is then aligned only as far as the size allows, like that of a slice; where the kernel asks for
  // more, a few checked bytes lie between.
  kEndsAtGuard,
  // The first byte lies just after inaccessible memory: any access before the start faults.
  kBeginsAtGuard,
  // Aligned to 256 bytes like a fresh CUDA allocation, as close to the inaccessible memory behind
  // it as that allows; the bytes between are checked for writes.
  kAligned,
};
inline constexpr Placement kPlacements[] = {Placement::kEndsAtGuard, Placement::kBeginsAtGuard,
                                            Placement::kAligned};
const char* name_of(Placement placement);

// Device memory of `bytes` bytes between two inaccessible stretches, filled with `fill`.
class GuardedBuffer {
 public:
  GuardedBuffer(std::string name, std::size_t bytes, std::size_t element_bytes,
                std::size_t alignment, Placement placement, unsigned char fill);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  const std::string& name() const { return name_; }
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  std::size_t element_bytes() const { return element_bytes_; }

  // Writes fault from now on.
  void make_read_only();
  bool read_only() const { return read_only_; }

  // Throws SimtError where a byte of the slack around the data has changed.
  void check_slack() const;

  // Whether the address lies in this buffer's pages or in the inaccessible ones around it.
  bool near(std::uintptr_t address) const {
    return address - reinterpret_cast<std::uintptr_t>(mapping_) < mapping_bytes_;
  }
  // "3 bytes past the end of 'logits' (128 bytes)"
  std::string describe(std::uintptr_t address) const;

  // Whether the data counts as written before a kernel writes it.
  void set_written(bool written) { written_ = written; }
  bool written() const { return written_; }

  // One record of who touched it per element (access.h); null until the first recorded access.
  void* shadow = nullptr;

 private:
  std::string name_;
  std::size_t bytes_;
  std::size_t element_bytes_;
  std::byte* mapping_;
  std::size_t mapping_bytes_;
  std::byte* data_;
  bool read_only_ = false;
  bool written_ = true;
};

// The live buffer around an address, or null.
GuardedBuffer* find_buffer(std::uintptr_t address);

// One RC_SHARED declaration (of one template instance).
struct SharedSite {
  const char* name;
  std::size_t bytes;
  std::size_t alignment;
  std::size_t element_bytes;
  std::uint64_t block_serial = 0;  // the block for which `data` holds
  std::byte* data = nullptr;
};

struct SharedArray {
  const SharedSite* site;
  std::byte* data;
};

// The shared memory of the block that runs. Each array lies between zones that hold the poison;
// the whole lies between inaccessible memory.
class SharedMemory {
 public:
  // CUDA's limit for static shared arrays.
  static constexpr std::size_t kLimit = 48 * 1024;
  static constexpr std::size_t kZone = 512;

  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void begin_block(unsigned char poison);
  std::byte* allocate(SharedSite& site);
  // An error message where a zone has changed since its array was made, else an empty string.
  std::string check_zones() const;

  bool contains(std::uintptr_t address) const {
    return address - reinterpret_cast<std::uintptr_t>(memory_) < capacity_;
  }
  // Also the inaccessible pages around it.
  bool near(std::uintptr_t address) const {
    return address - reinterpret_cast<std::uintptr_t>(mapping_) < mapping_bytes_;
  }
  const SharedArray* find(std::uintptr_t address) const;
  std::string describe(std::uintptr_t address) const;
  std::size_t offset(std::uintptr_t address) const {
    return address - reinterpret_cast<std::uintptr_t>(memory_);
  }
  std::size_t capacity() const { return capacity_; }

 private:
  std::byte* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  std::byte* memory_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::size_t array_bytes_ = 0;
  std::uint64_t block_serial_ = 0;
  unsigned char poison_ = 0xff;
  std::vector<SharedArray> arrays_;
};

}  // namespace robustcore::simt::host
