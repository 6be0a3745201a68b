#pragma once
// For tests of images of a VM with split memory: it runs on h1, h3 saves a share of its memory, and h2 gets copies of everything.

#include "control/core/core_testing.hpp"

namespace yado::control::testing_core {

struct ControlSplitTest : ControlCoreTest {
  ControlSplitTest() {
    for (const HostId& host : {h1, h2, h3}) agent(host).memory = {agent(host).agent.address, 7100};
  }
  static WorkloadSpec split() {
    WorkloadSpec wanted = spec(Consistency::shared, StandbyLevel::image);
    wanted.kind = Kind::vm;
    wanted.vm.memory_bytes = 64u << 20;
    wanted.vm.split = Split{.local_bytes = 16u << 20, .over = {{.host = h3, .address = {}}}};
    return wanted;
  }
  static ImageId share_of(const ImageId& image) { return ImageId(image.str() + ".h3"); }

  std::vector<Action> checkpoint(ControlCore::Extent extent) {
    EXPECT_TRUE(core().renew_image(site, extent, now));
    return take();
  }
  /// Carried out, with a share on h3.
  std::vector<Action> saved(const Made<BuildCall>& build, std::optional<ImageId> base) {
    const ImageReport image{.id = build.what.image, .workload = site, .bytes = 1000, .member_of = {}, .base = base, .members = {share_of(build.what.image)}};
    agent(build.host).images.push_back(image);
    agent(h3).images.push_back({.id = share_of(image.id), .workload = site, .bytes = 500, .member_of = image.id, .base = base});
    return done(build.id, CallReply{.image = image, .sequence = agent(build.host).sequence, .detail = "in 5 ms"});
  }
  std::vector<Action> saved(const Made<BuildCall>& build) { return saved(build, build.what.base); }
};

}  // namespace yado::control::testing_core
