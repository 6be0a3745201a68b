#pragma once
// One guest's memory with its servers, as all clients of its pager share it (client.hpp).

#include <memory>
#include <mutex>

#include "image/page.hpp"
#include "pager/network.hpp"
#include "pager/pager.hpp"
#include "pager/save_watch.hpp"

namespace yado::pager {

/// The cut from which the pager counts changes.
struct KeptCut {
  std::mutex mutex;
  image::CutId cut;  // guarded by mutex: held from looking at it until the pager has begun, and while it changes
};

struct ServedMemory {
  const ServiceConfig& config;
  Pager& pager;
  Network& network;
  std::shared_ptr<SaveWatch> watch;
  KeptCut kept;
};

}  // namespace yado::pager
