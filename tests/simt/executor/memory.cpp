#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "access.h"
#include "executor.h"

#if RC_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#define RC_SIMT_FENCE(address, bytes) __asan_poison_memory_region(address, bytes)
#define RC_SIMT_UNFENCE(address, bytes) __asan_unpoison_memory_region(address, bytes)
#else
#define RC_SIMT_FENCE(address, bytes) static_cast<void>(0)
#define RC_SIMT_UNFENCE(address, bytes) static_cast<void>(0)
#endif

namespace robustcore::simt::host {
namespace {

constexpr unsigned char kSlack = 0xa5;
// Inaccessible address space on both sides: costs nothing, and catches wild indices too.
constexpr std::size_t kGuard = std::size_t{16} << 20;

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Memory between two inaccessible stretches.
std::byte* map_between_guards(std::size_t inner_bytes, std::size_t& mapping_bytes) {
  mapping_bytes = inner_bytes + 2 * kGuard;
  void* memory =
      mmap(nullptr, mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* mapping = static_cast<std::byte*>(memory);
  if (mprotect(mapping + kGuard, inner_bytes, PROT_READ | PROT_WRITE) != 0) {
    throw std::bad_alloc();
  }
  return mapping;
}

std::vector<GuardedBuffer*>& live_buffers() {
  static std::vector<GuardedBuffer*> buffers;
  return buffers;
}

std::string place(std::uintptr_t address, std::uintptr_t begin, std::size_t bytes,
                  std::size_t element_bytes, const std::string& what) {
  const std::string size = " (" + std::to_string(bytes) + " bytes)";
  if (address < begin) {
    return std::to_string(begin - address) + " bytes before the start of " + what + size;
  }
  if (address >= begin + bytes) {
    return std::to_string(address - begin - bytes) + " bytes past the end of " + what + size;
  }
  return "element " + std::to_string((address - begin) / element_bytes) + " of " + what + size;
}

}  // namespace

const char* name_of(Placement placement) {
  switch (placement) {
    case Placement::kEndsAtGuard:
      return "ends_at_guard";
    case Placement::kBeginsAtGuard:
      return "begins_at_guard";
    case Placement::kAligned:
      return "aligned";
  }
  return "unknown";
}

GuardedBuffer::GuardedBuffer(std::string name, std::size_t bytes, std::size_t element_bytes,
                             std::size_t alignment, Placement placement, unsigned char fill)
    : name_(std::move(name)), bytes_(bytes), element_bytes_(element_bytes) {
  const std::size_t inner = round_up(std::max<std::size_t>(bytes, 1), page_bytes());
  mapping_ = map_between_guards(inner, mapping_bytes_);
  std::byte* first = mapping_ + kGuard;
  switch (placement) {
    case Placement::kEndsAtGuard:
      data_ = first + (inner - bytes) / alignment * alignment;
      break;
    case Placement::kBeginsAtGuard:
      data_ = first;
      break;
    case Placement::kAligned:
      data_ = first + (inner - bytes) / 256 * 256;
      break;
  }
  std::memset(first, kSlack, inner);
  if (bytes > 0) std::memset(data_, fill, bytes);
  RC_SIMT_FENCE(first, static_cast<std::size_t>(data_ - first));
  RC_SIMT_FENCE(data_ + bytes, static_cast<std::size_t>(first + inner - data_) - bytes);
  live_buffers().push_back(this);
}

GuardedBuffer::~GuardedBuffer() {
  auto& buffers = live_buffers();
  buffers.erase(std::find(buffers.begin(), buffers.end(), this));
  std::free(shadow);
  RC_SIMT_UNFENCE(mapping_ + kGuard, mapping_bytes_ - 2 * kGuard);
  munmap(mapping_, mapping_bytes_);
}

void GuardedBuffer::make_read_only() {
  read_only_ = true;
  mprotect(mapping_ + kGuard, mapping_bytes_ - 2 * kGuard, PROT_READ);
}

void GuardedBuffer::check_slack() const {
#if !RC_SIMT_ASAN  // which has fenced the slack, also against us
  const auto changed = [&](const std::byte* from, const std::byte* to) {
    return std::find_if(from, to, [](std::byte byte) { return byte != std::byte{kSlack}; });
  };
  const std::byte* first = mapping_ + kGuard;
  const std::byte* last = mapping_ + mapping_bytes_ - kGuard;
  const std::byte* byte = changed(first, data_);
  if (byte == data_) {
    byte = changed(data_ + bytes_, last);
    if (byte == last) return;
  }
  throw SimtError("out-of-bounds write",
                  "memory was written " + describe(reinterpret_cast<std::uintptr_t>(byte)));
#endif
}

std::string GuardedBuffer::describe(std::uintptr_t address) const {
  return place(address, reinterpret_cast<std::uintptr_t>(data_), bytes_, element_bytes_,
               "'" + name_ + "'");
}

GuardedBuffer* find_buffer(std::uintptr_t address) {
  for (GuardedBuffer* buffer : live_buffers()) {
    if (buffer->near(address)) return buffer;
  }
  return nullptr;
}

SharedMemory::SharedMemory() {
  // Room for the arrays, and for their zones where there are up to 128 of them.
  capacity_ = round_up(kLimit + 128 * (kZone + 256), page_bytes());
  mapping_ = map_between_guards(capacity_, mapping_bytes_);
  memory_ = mapping_ + kGuard;
}

SharedMemory::~SharedMemory() {
  RC_SIMT_UNFENCE(mapping_ + kGuard, mapping_bytes_ - 2 * kGuard);
  munmap(mapping_, mapping_bytes_);
}

void SharedMemory::begin_block(unsigned char poison) {
  RC_SIMT_UNFENCE(memory_, used_);
  ++block_serial_;
  poison_ = poison;
  used_ = 0;
  array_bytes_ = 0;
  arrays_.clear();
}

std::byte* SharedMemory::allocate(SharedSite& site) {
  if (site.block_serial == block_serial_) return site.data;
  array_bytes_ = round_up(array_bytes_, site.alignment) + site.bytes;
  const std::size_t start = round_up(used_ + kZone, std::max<std::size_t>(site.alignment, 16));
  const std::size_t end = start + site.bytes + kZone;
  if (array_bytes_ > kLimit || end > capacity_) {
    fail("too much shared memory", "static shared arrays need " + std::to_string(array_bytes_) +
                                       " bytes a block with '" + site.name + "', CUDA allows " +
                                       std::to_string(kLimit));
  }
  std::memset(memory_ + used_, poison_, end - used_);
  RC_SIMT_FENCE(memory_ + used_, start - used_);
  RC_SIMT_FENCE(memory_ + start + site.bytes, kZone);
  used_ = end;
  site.block_serial = block_serial_;
  site.data = memory_ + start;
  arrays_.push_back({&site, site.data});
  begin_shared_array(site);
  return site.data;
}

std::string SharedMemory::check_zones() const {
#if !RC_SIMT_ASAN
  const std::byte* at = memory_;
  const auto first_changed = [this](const std::byte* from,
                                    const std::byte* to) -> const std::byte* {
    const auto changed = [this](std::byte byte) { return byte != std::byte{poison_}; };
    const std::byte* found = std::find_if(from, to, changed);
    return found == to ? nullptr : found;
  };
  for (const SharedArray& array : arrays_) {
    const std::byte* end = array.data + array.site->bytes;
    const std::byte* byte = first_changed(at, array.data);
    if (byte == nullptr) byte = first_changed(end, end + kZone);
    if (byte != nullptr) {
      return "shared memory was written " + describe(reinterpret_cast<std::uintptr_t>(byte));
    }
    at = end + kZone;
  }
#endif
  return {};
}

const SharedArray* SharedMemory::find(std::uintptr_t address) const {
  for (const SharedArray& array : arrays_) {
    const auto begin = reinterpret_cast<std::uintptr_t>(array.data);
    if (address - begin < array.site->bytes) return &array;
  }
  return nullptr;
}

std::string SharedMemory::describe(std::uintptr_t address) const {
  const SharedArray* nearest = nullptr;
  std::uintptr_t least = ~std::uintptr_t{0};
  for (const SharedArray& array : arrays_) {
    const auto begin = reinterpret_cast<std::uintptr_t>(array.data);
    const auto end = begin + array.site->bytes;
    const std::uintptr_t distance = address < begin  ? begin - address
                                    : address >= end ? address - end
                                                     : 0;
    if (nearest == nullptr || distance < least) {
      nearest = &array;
      least = distance;
    }
  }
  if (nearest == nullptr) return "outside every shared array";
  return place(address, reinterpret_cast<std::uintptr_t>(nearest->data), nearest->site->bytes,
               nearest->site->element_bytes,
               std::string("shared array '") + nearest->site->name + "'");
}

}  // namespace robustcore::simt::host
