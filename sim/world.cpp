#include "world.hpp"

#include <cstdio>

#include <fmt/format.h>

namespace yado::sim {

std::uint64_t Random::next() {
  std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::int64_t Random::between(std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(high - low + 1));
}

void World::at(Instant when, std::function<void()> what) {
  queue_.push(Item{std::max(when, now_), ++order_, std::move(what)});
}

void World::run(Instant end) {
  while (!queue_.empty() && queue_.top().when <= end) {
    Item item = queue_.top();
    queue_.pop();
    now_ = item.when;
    item.what();
  }
  now_ = end;
}

void World::packet(const NodeName& from, const NodeName& to, std::function<void()> what) {
  if (!reaches(from, to)) return;
  // Mostly a local network, now and then a queue that stands.
  nanoseconds delay = random.duration(50us, 500us);
  if (random.chance(0.01)) delay += random.duration(1ms, 40ms);
  after(delay, std::move(what));
}

void World::send(const NodeName& from, const NodeName& to, std::function<void()> what) {
  retransmit(from, to, std::move(what), 200ms, now_ + 15s);
}

void World::retransmit(NodeName from, NodeName to, std::function<void()> what, nanoseconds pause, Instant give_up) {
  if (reaches(from, to)) return packet(from, to, std::move(what));
  if (now_ + pause > give_up) return;
  after(pause, [this, from, to, what, pause, give_up] { retransmit(from, to, what, 2 * pause, give_up); });
}

void World::violation(std::string what) {
  trace("VIOLATION " + what);
  violations_.push_back(fmt::format("{:.3f} ms: {}", to_ms(now_.time_since_epoch()), what));
}

void World::trace(std::string_view what) {
  auto mix = [&](std::uint64_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3; };  // FNV-1a
  for (int shift = 0; shift < 64; shift += 8) mix(static_cast<std::uint64_t>(now_.time_since_epoch().count()) >> shift & 0xff);
  for (char c : what) mix(static_cast<unsigned char>(c));
  if (tracing) std::printf("%12.3f  %.*s\n", to_ms(now_.time_since_epoch()), static_cast<int>(what.size()), what.data());
}

}  // namespace yado::sim
