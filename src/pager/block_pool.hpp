#pragma once
// Large buffers that are used again: a fresh one costs a page fault per 4 KiB, more than what is done with its content.

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace yado::pager {

/// Thread-safe. Blocks may outlive the pool.
class BlockPool {
 public:
  explicit BlockPool(std::size_t block_bytes, std::size_t most_kept = 16)
      : state_(std::make_shared<State>()), block_bytes_(block_bytes) {
    state_->most_kept = most_kept;
  }

  std::size_t block_bytes() const { return block_bytes_; }

  /// Goes back to the pool with its last owner.
  std::shared_ptr<std::byte[]> take() {
    std::unique_ptr<std::byte[]> block;
    {
      const std::lock_guard lock(state_->mutex);
      if (!state_->free.empty()) {
        block = std::move(state_->free.back());
        state_->free.pop_back();
      }
    }
    if (!block) block = std::make_unique_for_overwrite<std::byte[]>(block_bytes_);
    return {block.release(), [state = state_](std::byte* bytes) {
              std::unique_ptr<std::byte[]> back(bytes);
              const std::lock_guard lock(state->mutex);
              if (state->free.size() < state->most_kept) state->free.push_back(std::move(back));
            }};
  }

 private:
  struct State {
    std::mutex mutex;
    std::vector<std::unique_ptr<std::byte[]>> free;  // guarded by mutex
    std::size_t most_kept = 0;
  };
  std::shared_ptr<State> state_;
  std::size_t block_bytes_;
};

}  // namespace yado::pager
