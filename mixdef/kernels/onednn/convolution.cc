// A convolution of images [B,H,W,C] with a kernel [kh,kw,C,O] and its two gradients
// by oneDNN, for XLA. oneDNN keeps what it compiled for the last thousand shapes.

#include <exception>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

// Of OpenMP, which oneDNN brings along. Its header need not be installed.
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Tag = memory::format_tag;
using Floats = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Span<const int64_t>;

enum class Pass { kForward, kInputGradient, kKernelGradient };

// Where the window goes, rows before columns.
struct Geometry {
  memory::dims strides, low, high;
};

// XLA calls from threads of its own, several at once. If each had a team of OpenMP's
// threads, they would wait for cores that the others hold.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  const int before_;
};

const dnnl::engine& Cpu() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

memory::dims Copy(Numbers numbers) { return {numbers.begin(), numbers.end()}; }

// oneDNN names sizes channels first, whatever the layout.
memory::desc Images(Numbers d) {
  return {{d[0], d[3], d[1], d[2]}, memory::data_type::f32, Tag::nhwc};
}

memory::desc Kernel(Numbers d, Tag layout) {
  return {{d[3], d[2], d[0], d[1]}, memory::data_type::f32, layout};
}

dnnl::primitive_desc_base Describe(Pass pass, const memory::desc& images,
                                   const memory::desc& kernel,
                                   const memory::desc& maps, const Geometry& g) {
  constexpr auto kAlgorithm = dnnl::algorithm::convolution_direct;
  dnnl::primitive_attr attributes;
  // Scratch that belongs to the call lets several threads share one primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::convolution_forward::primitive_desc forward(
      Cpu(), dnnl::prop_kind::forward_training, kAlgorithm, images, kernel, maps,
      g.strides, g.low, g.high, attributes);
  switch (pass) {
    case Pass::kInputGradient:
      return dnnl::convolution_backward_data::primitive_desc(
          Cpu(), kAlgorithm, images, kernel, maps, g.strides, g.low, g.high, forward,
          attributes);
    case Pass::kKernelGradient:
      return dnnl::convolution_backward_weights::primitive_desc(
          Cpu(), kAlgorithm, images, kernel, maps, g.strides, g.low, g.high, forward,
          attributes);
    default:
      return forward;
  }
}

template <Pass pass>
void Run(Floats images, Floats kernel, Floats maps, const Geometry& g) {
  constexpr int kImages =
      pass == Pass::kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC;
  constexpr int kKernel =
      pass == Pass::kKernelGradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS;
  constexpr int kMaps = pass == Pass::kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST;
  const memory::desc image_layout = Images(images.dimensions());
  const memory::desc map_layout = Images(maps.dimensions());
  const auto description =
      Describe(pass, image_layout, Kernel(kernel.dimensions(), Tag::any), map_layout, g);

  // The kernel is small: copying it to the layout that suits oneDNN costs little.
  memory ours(Kernel(kernel.dimensions(), Tag::hwio), Cpu(), kernel.typed_data());
  memory theirs(description.query_md(dnnl::query::exec_arg_md, kKernel), Cpu());
  dnnl::stream stream(Cpu());
  if (pass != Pass::kKernelGradient) {
    dnnl::reorder(ours, theirs).execute(stream, ours, theirs);
  }
  dnnl::primitive(description.get())
      .execute(stream,
               {{kImages, memory(image_layout, Cpu(), images.typed_data())},
                {kKernel, theirs},
                {kMaps, memory(map_layout, Cpu(), maps.typed_data())},
                {DNNL_ARG_SCRATCHPAD, memory(description.scratchpad_desc(), Cpu())}});
  if (pass == Pass::kKernelGradient) {
    dnnl::reorder(theirs, ours).execute(stream, theirs, ours);
  }
  stream.wait();
}

template <Pass pass>
ffi::Error Handle(Floats left, Floats right, ffi::Result<Floats> result, Numbers strides,
                  Numbers low, Numbers high) {
  const Geometry g = {Copy(strides), Copy(low), Copy(high)};
  const OneThread one_thread;
  try {
    if constexpr (pass == Pass::kForward) Run<pass>(left, right, *result, g);
    if constexpr (pass == Pass::kInputGradient) Run<pass>(*result, right, left, g);
    if constexpr (pass == Pass::kKernelGradient) Run<pass>(left, *result, right, g);
  } catch (const std::exception& problem) {
    return ffi::Error::Internal(problem.what());
  }
  return ffi::Error::Success();
}

}  // namespace

#define MIXDEF_TARGET(name, pass)                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Handle<pass>,                        \
                                ffi::Ffi::Bind()                           \
                                    .Arg<Floats>()                         \
                                    .Arg<Floats>()                         \
                                    .Ret<Floats>()                         \
                                    .Attr<Numbers>("strides")              \
                                    .Attr<Numbers>("low")                  \
                                    .Attr<Numbers>("high"))

MIXDEF_TARGET(mixdef_convolution, Pass::kForward);
MIXDEF_TARGET(mixdef_input_gradient, Pass::kInputGradient);
MIXDEF_TARGET(mixdef_kernel_gradient, Pass::kKernelGradient);
