// Runs CUDA kernels on the CPU: what of CUDA's language they use, each with its exact meaning. The threads of a block
// are fibers of one thread of the process, which change at barriers; blocks run one after another.
#pragma once

#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

constexpr std::size_t kStack = 1 << 16;

struct Fiber {
  ucontext_t start;  // only for the first time: changing contexts is a system call, jumping is none
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false, done = false, at_barrier = false;
};

struct Block {
  std::vector<Fiber> fibers;
  std::function<void()> kernel;
  jmp_buf scheduler;
  int current = 0;
  bool any = false, last_any = false;  // of __syncthreads_or
  std::vector<unsigned char> shared;   // what it is launched with, whose contents are not known
  bool misaligned = false;
};

inline thread_local Block* block = nullptr;
inline thread_local dim3 thread_index, block_index, block_size, grid_size;

// With ADDERZOO_REVERSED the last thread of a block comes first: results that change show that a barrier is missing.
inline bool reversed() {
  const char* const text = std::getenv("ADDERZOO_REVERSED");
  return text && *text == '1';
}

// An address from which a GPU would fetch so many bytes at once: one that is no multiple of them ends the CUDA context.
inline const void* aligned(const void* from, std::uintptr_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(from) % bytes != 0) block->misaligned = true;
  return from;
}

inline void enter() {
  block->kernel();
  block->fibers[block->current].done = true;
  _longjmp(block->scheduler, 1);
}

inline void barrier() {
  Fiber& fiber = block->fibers[block->current];
  fiber.at_barrier = true;
  if (_setjmp(fiber.place) == 0) _longjmp(block->scheduler, 1);
}

inline void resume(Fiber& fiber) {
  if (_setjmp(block->scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

inline void* shared_memory(std::size_t bytes) {
  if (bytes > block->shared.size()) throw std::logic_error("a block is launched with less shared memory than it uses");
  return block->shared.data();
}

inline void run_block(std::vector<Fiber>& fibers, std::size_t shared, const std::function<void()>& kernel) {
  Block now;
  now.shared.assign(shared, 0xff);
  now.fibers.swap(fibers);
  now.kernel = kernel;
  block = &now;
  const int count = static_cast<int>(now.fibers.size());
  for (Fiber& fiber : now.fibers) {
    fiber.started = fiber.done = fiber.at_barrier = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
  }
  const bool backwards = reversed();
  for (int left = count; left > 0;) {
    int waiting = 0, done = 0;
    for (int i = 0; i < count; ++i) {
      now.current = backwards ? count - 1 - i : i;
      Fiber& fiber = now.fibers[now.current];
      if (fiber.done) continue;
      fiber.at_barrier = false;
      thread_index = dim3(static_cast<unsigned>(now.current), 0, 0);
      resume(fiber);
      waiting += fiber.at_barrier;
      done += fiber.done;
    }
    left -= done;
    if (waiting > 0 && left != waiting)
      throw std::logic_error("some threads of a block wait at a barrier, others do not");
    if (waiting > 0 && done > 0) throw std::logic_error("a thread of a block ended while others wait at a barrier");
    now.last_any = now.any;
    now.any = false;
  }
  now.fibers.swap(fibers);
  block = nullptr;
  if (now.misaligned) throw std::logic_error("a thread fetches several numbers at once from a misaligned address");
}

// Adds a kernel's name to the file ADDERZOO_KERNELS.
inline void note(void* kernel) {
  static const char* const path = std::getenv("ADDERZOO_KERNELS");
  static thread_local std::set<void*> noted;
  Dl_info info;
  if (!path || !noted.insert(kernel).second || !dladdr(kernel, &info)) return;
  std::FILE* const file = std::fopen(path, "a");
  std::fprintf(file, "%s\n", info.dli_sname);
  std::fclose(file);
}

inline void run(void* name, dim3 grid, int threads, std::size_t shared, const std::function<void()>& kernel) {
  note(name);
  std::vector<Fiber> fibers(static_cast<std::size_t>(threads));
  grid_size = grid;
  block_size = dim3(static_cast<unsigned>(threads));
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        run_block(fibers, shared, kernel);
      }
    }
  }
}

}  // namespace cuda_on_cpu

#define threadIdx cuda_on_cpu::thread_index
#define blockIdx cuda_on_cpu::block_index
#define blockDim cuda_on_cpu::block_size
#define gridDim cuda_on_cpu::grid_size

inline void __syncthreads() { cuda_on_cpu::barrier(); }

inline bool __syncthreads_or(int predicate) {
  cuda_on_cpu::block->any = cuda_on_cpu::block->any || predicate;
  cuda_on_cpu::barrier();
  return cuda_on_cpu::block->last_any;
}
