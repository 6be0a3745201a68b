#pragma once
// For tests of Copies: one thing at a time, and a simulation of everything at once.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pager/remote_testing.hpp"

namespace yado::pager {

/// Copies over servers that answer when they are told to.
class CopiesFixture : public RemoteFixture {
 protected:
  void make(unsigned how_many_servers, unsigned copies, std::uint64_t quota = 1000, std::uint64_t pages = 2000) {
    std::vector<PageServer*> all;
    for (unsigned i = 0; i < how_many_servers; ++i) all.push_back(new_server("s" + std::to_string(i), quota));
    remote = std::make_unique<Copies>(Copies::Options{.pages = pages, .copies = copies, .seed = seed_of_sums}, all);
  }
  FakeServer* new_server(const std::string& name, std::uint64_t quota) {
    servers.push_back(std::make_unique<FakeServer>(name, quota));
    return servers.back().get();
  }
  void kill(std::size_t server) {
    servers[server]->die([&] { remote->server_died(server); });
    settle();
  }

  RemoteMemory& tested() override { return *remote; }
  std::vector<std::unique_ptr<FakeServer>>& tested_servers() override { return servers; }

  std::vector<std::unique_ptr<FakeServer>> servers;
  std::unique_ptr<Copies> remote;
};

/// Copies in a simulation, over servers of one size.
class CopiesHosts : public TestedHosts {
 public:
  struct Shape {
    unsigned servers = 3, copies = 1;
    std::uint64_t quota = 2000;  ///< of each server
  };
  explicit CopiesHosts(const Shape& shape) : shape_(shape) {
    std::vector<PageServer*> all;
    for (unsigned i = 0; i < shape.servers; ++i) all.push_back(new_server());
    copies = std::make_unique<Copies>(Copies::Options{.pages = Simulation::pages, .copies = shape.copies, .seed = seed_of_sums}, all);
  }
  RemoteMemory& remote() override { return *copies; }
  std::size_t any_alive(std::size_t random) const override {
    for (std::size_t i = 0; i < servers.size(); ++i)
      if (const std::size_t host = (random + i) % servers.size(); servers[host]->alive()) return host;
    return 0;
  }

  std::unique_ptr<Copies> copies;

 protected:
  FakeServer* new_server() {
    servers.push_back(std::make_unique<FakeServer>("s" + std::to_string(servers.size()), shape_.quota));
    return servers.back().get();
  }
  const Shape shape_;
};

}  // namespace yado::pager
