#pragma once
// For tests of Parity: hosts of two simulated servers each.

#include "pager/parity.hpp"
#include "pager/remote_testing.hpp"

namespace yado::pager {

struct Shape {
  unsigned hosts = 3, data = 2;
  std::uint64_t quota = 2000;  ///< of each host, for pages
  bool harmed = false;         ///< the test changes contents: losses are nobody's fault
  std::size_t most_held = 16384;
  bool restored = false;       ///< a third of the pages lies on the hosts at the start, another third in an image
};

/// Two servers each, as Parity wants them; a host dies with both.
class ParityHosts : public TestedHosts {
 public:
  explicit ParityHosts(const Shape& shape, std::uint64_t pages = Simulation::pages) : shape_(shape) {
    std::vector<Parity::Host> all;
    for (unsigned i = 0; i < shape.hosts; ++i) {
      servers.push_back(std::make_unique<FakeServer>("pages" + std::to_string(i), shape.quota));
      servers.push_back(std::make_unique<FakeServer>("parity" + std::to_string(i), Parity::stripes(pages, shape.data)));
      all.push_back({servers[2 * i].get(), servers[2 * i + 1].get()});
    }
    if (shape.restored) {
      servers.push_back(std::make_unique<FakeServer>("image", pages));
      all.push_back({servers.back().get(), nullptr});
    }
    parity = std::make_unique<Parity>(Parity::Options{.pages = pages, .data = shape.data, .seed = seed_of_sums, .most_held = shape.most_held}, all);
    for (PageNumber page = 0; page < pages && shape.restored; ++page) {
      const std::size_t where = page / 7 % (shape.hosts + shape.hosts + 1);  // half of them on hosts
      if (page % 3 == 0 || where > 2 * shape.hosts) continue;
      const std::size_t host = std::min<std::size_t>(where, shape.hosts);
      const std::uint64_t number = page % 5 == 0 ? 0 : page + 1;
      servers[2 * host]->held[page] = number;
      loaded_[page] = number;
      parity->adopt(std::vector<KindRun>{{page, 1, number == 0 ? PageKind::zero : PageKind::data}}, host);
    }
    parity->take_in_loaded();
  }
  Contents loaded() override { return loaded_; }
  RemoteMemory& remote() override { return *parity; }
  void kill(std::size_t host) override {
    if (!servers[2 * host]->alive()) return;
    ++deaths;
    if (parity->pages_without_redundancy() > 0 || parity->repairing()) at_a_bad_time = true;
    servers[2 * host]->die([&] { parity->server_died(host); });
    servers[2 * host + 1]->die([] {});
  }
  /// Another one takes the place of a dead one.
  void change(unsigned) override {
    for (unsigned host = 0; host < shape_.hosts; ++host) {
      if (servers[2 * host]->alive()) continue;
      for (const unsigned i : {2 * host, 2 * host + 1}) {
        buried_.push_back(std::move(servers[i]));
        servers[i] = std::make_unique<FakeServer>(buried_.back()->name(), buried_.back()->quota_pages());
      }
      EXPECT_EQ(parity->add_server(servers[2 * host].get(), servers[2 * host + 1].get()).value(), host);
      --deaths;
      ++replaced;
    }
  }
  std::size_t any_alive(std::size_t random) const override {
    for (std::size_t i = 0; i < shape_.hosts; ++i)
      if (const std::size_t host = (random + i) % shape_.hosts; servers[2 * host]->alive()) return host;
    return 0;
  }
  void check_at_rest() override {
    EXPECT_FALSE(parity->repairing());
    for (std::size_t i = 0; i < shape_.hosts && !at_a_bad_time; ++i)  // else pages that are lost have their room, but nobody has them
      EXPECT_TRUE(!servers[2 * i]->alive() || parity->pages_at(i) == servers[2 * i]->data_pages() + servers[2 * i + 1]->data_pages()) << "they differ about host " << i << ": " << parity->pages_at(i) << " and " << servers[2 * i]->data_pages() << " + " << servers[2 * i + 1]->data_pages();
  }
  bool can_lose_another() const override { return shape_.hosts - deaths > shape_.data && shape_.quota >= Simulation::pages; }
  bool may_be_lost(PageNumber, std::uint64_t) const override { return deaths > 1 || shape_.harmed || at_a_bad_time; }

  std::unique_ptr<Parity> parity;
  unsigned deaths = 0, replaced = 0;
  bool at_a_bad_time = false;  ///< a host died while something had no redundancy

 protected:
  Shape shape_;
  std::vector<std::unique_ptr<FakeServer>> buried_;

 private:
  Contents loaded_;
};

class ParityTest : public RemoteFixture {
 protected:
  void make(const Shape& shape) { hosts = std::make_unique<ParityHosts>(shape, 4096); }
  void kill(std::size_t host) {
    hosts->kill(host);
    settle();
  }
  std::uint64_t parity_pages() const {
    std::uint64_t sum = 0;
    for (std::size_t i = 1; i < hosts->servers.size(); i += 2) sum += hosts->servers[i]->data_pages();
    return sum;
  }
  RemoteMemory& tested() override { return *hosts->parity; }
  std::vector<std::unique_ptr<FakeServer>>& tested_servers() override { return hosts->servers; }

  std::unique_ptr<ParityHosts> hosts;
};

}  // namespace yado::pager
