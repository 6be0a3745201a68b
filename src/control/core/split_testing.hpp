#pragma once
// For tests of images of a VM with split memory: it runs on h1, h3 (if no other is named) saves a share of its memory, and h2 gets copies of everything.

#include "control/core/core_testing.hpp"

namespace yado::control::testing_core {

struct ControlSplitTest : ControlCoreTest {
  ControlSplitTest() {
    for (const HostId& host : {h1, h2, h3}) agent(host).memory = {agent(host).agent.address, 7100};
  }
  HostId sharer = h3;

  WorkloadSpec split() const {
    WorkloadSpec wanted = spec(Consistency::shared, StandbyLevel::image);
    wanted.kind = Kind::vm;
    wanted.vm.memory_bytes = 64u << 20;
    wanted.vm.split = Split{.local_bytes = 16u << 20, .over = {{.host = sharer, .address = {}}}};
    return wanted;
  }
  ImageId share_of(const ImageId& image) const { return ImageId(image.str() + "." + sharer.str()); }

  std::vector<Action> checkpoint(ControlCore::Extent extent) {
    EXPECT_TRUE(core().renew_image(site, extent, now));
    return take();
  }
  /// Carried out, with a share on h3.
  std::vector<Action> saved(const Made<BuildCall>& build, std::optional<ImageId> base) {
    const ImageReport image{.id = build.what.image, .workload = site, .bytes = 1000, .member_of = {}, .base = base, .members = {share_of(build.what.image)}};
    agent(build.host).images.push_back(image);
    agent(sharer).images.push_back({.id = share_of(image.id), .workload = site, .bytes = 500, .member_of = image.id, .base = base});
    return done(build.id, CallReply{.image = image, .sequence = agent(build.host).sequence, .detail = "in 5 ms"});
  }
  std::vector<Action> saved(const Made<BuildCall>& build) { return saved(build, build.what.base); }

  /// The puller has all that was named to it.
  std::vector<Action> copied(const Made<PullCall>& pull) {
    auto& images = agent(pull.host).images;
    for (const PullCall::Member& member : pull.what.members) add(images, member.image);
    add(images, pull.what.image);
    const ImageReport image = *std::ranges::find(images, pull.what.image, &ImageReport::id);
    return done(pull.id, CallReply{.image = image, .sequence = agent(pull.host).sequence});
  }
  static std::vector<ImageId> named(const std::vector<PullCall::Member>& members) {
    std::vector<ImageId> all;
    for (const PullCall::Member& member : members) all.push_back(member.image);
    return all;
  }

 private:
  void add(std::vector<ImageReport>& images, const ImageId& id) {
    if (std::ranges::find(images, id, &ImageReport::id) != images.end()) return;
    for (const auto& [host, report] : agents)
      for (const ImageReport& known : report.images)
        if (known.id == id) {
          const ImageReport copy = known;
          images.push_back(copy);
          return;
        }
    ADD_FAILURE() << id.str() << " is nowhere";
  }
};

}  // namespace yado::control::testing_core
