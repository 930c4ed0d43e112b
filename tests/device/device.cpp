// A device that is the processor's memory under another name, and that mixes with it no more than a GPU does.
//
// Every operator runs on the processor, on copies; an operand that a GPU would refuse is refused. So a tensor that was
// left behind on the processor shows without a GPU. What only a GPU has (streams, graphs, kernels that are missing) is
// not seen.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

long operations = 0;

bool is_own(const at::Tensor& tensor) { return tensor.device().type() == KIND; }

// Memory, and what torch asks of every device.

struct Memory final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* begin = bytes ? std::malloc(bytes) : nullptr;
    return {begin, begin, &std::free, c10::Device(KIND, 0)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return {KIND, 0}; }
  c10::Device getDevice() const override { return {KIND, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static auto generator = at::make_generator<at::CPUGeneratorImpl>(at::default_rng_seed_val);
    return generator;
  }
  at::Device getDeviceFromPtr(void*) const override { return {KIND, 0}; }
  bool isPinnedPtr(const void*) const override { return false; }
  at::Allocator* getPinnedMemoryAllocator() const override { return at::getCPUAllocator(); }
};
Hooks hooks;

// What cannot run on a copy: making tensors, views of them, and copies themselves.

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
}

at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) { return at::native::view(self, size); }

at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}

at::Tensor unfold(const at::Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  return at::native::unfold(self, dimension, size, step);
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, size, format);
}

at::Tensor& set_(at::Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, source, offset, size, stride);
}

// The same memory as a tensor of the processor.
at::Tensor of_processor(const at::Tensor& tensor) {
  if (!is_own(tensor)) return tensor;
  auto storage = tensor.storage();
  auto bytes = at::from_blob(const_cast<void*>(storage.data()), {int64_t(storage.nbytes())}, [storage](void*) {},
                             at::TensorOptions().dtype(at::kByte));
  auto same = at::empty({0}, tensor.options().device(at::kCPU));
  same.set_(c10::Storage(bytes.storage()), tensor.storage_offset(), tensor.sizes(), tensor.strides());
  return same;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  of_processor(to).copy_(of_processor(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  at::native::resize_(to, self.sizes(), std::nullopt);
  return copy_from(self, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  return at::native::_local_scalar_dense_cpu(of_processor(self));
}

// All others. As on a GPU a number may stand on the processor, and so may what a tensor is indexed with.
void refuse_mixed(const c10::OperatorHandle& operation, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const auto count = schema.arguments().size();
  bool own = false;
  std::string stray;
  auto see = [&](const at::Tensor& tensor, const std::string& name) {
    if (!tensor.defined()) return;
    if (is_own(tensor)) own = true;
    else if (tensor.dim() > 0 && name != "indices") stray = name;
  };
  for (size_t k = 0; k < count; ++k) {
    const auto& value = (*stack)[stack->size() - count + k];
    const auto& name = schema.arguments()[k].name();
    if (value.isTensor()) see(value.toTensor(), name);
    else if (value.isTensorList()) for (const auto& tensor : value.toTensorVector()) see(tensor, name);
    else if (value.isOptionalTensorList())
      for (const auto& tensor : value.toOptionalTensorVector()) if (tensor) see(*tensor, name);
  }
  TORCH_CHECK(!own || stray.empty(), schema.name(), ": '", stray, "' stands on the processor, not on the device");
  operations += own;
  at::native::cpu_fallback(operation, stack, false);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", as_strided);
  library.impl("view", view);
  library.impl("_reshape_alias", reshape_alias);
  library.impl("unfold", unfold);
  library.impl("resize_", resize_);
  library.impl("set_.source_Storage_storage_offset", set_);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", local_scalar_dense);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&refuse_mixed>());
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("operations", [] { return operations; });
}
