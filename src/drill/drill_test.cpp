#include <algorithm>
#include <memory>

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>
#include <unistd.h>

#include "drill/load.hpp"
#include "drill/metrics.hpp"
#include "drill/timeline.hpp"

namespace yado::drill {
namespace {

Instant at_ms(int ms) { return Instant(milliseconds(ms)); }

Moment moment(std::string kind, int ms, std::uint64_t epoch = 0, std::string workload = "site", std::string host = "") {
  return Moment{.kind = std::move(kind), .workload = std::move(workload), .host = std::move(host), .epoch = epoch, .at = at_ms(ms)};
}

Sample sample(int due_ms, int ended_ms, std::uint64_t epoch, bool correct = true) {
  return Sample{.due = at_ms(due_ms), .ended = at_ms(ended_ms), .status = correct ? 200 : 502, .correct = correct, .epoch = epoch};
}

nanoseconds sum(const Timeline& line) { return line.suspect + line.commit + line.raise + line.ready + line.switched; }

// ---- timeline ------------------------------------------------------------------------------------------------------

TEST(TimelineTest, WithoutAnAnswerFromANewEpochThereWasNoFailover) {
  EXPECT_FALSE(timeline_of({moment("grant", 20, 2)}, {sample(5, 30, 1), sample(6, 40, 2, false)}, "site", "h1", 1, at_ms(10)));
}

TEST(TimelineTest, PhasesFollowTheEventsAndAddUp) {
  Moment ready = moment("ready", 90, 2);
  ready.ready_took = 30ms;
  ready.way = "frozen";
  const std::vector<Moment> moments{moment("suspect", 25, 1), moment("suspected", 27, 1), moment("grant", 40, 2), ready};
  const auto line = timeline_of(moments, {sample(8, 9, 1), sample(11, 115, 2), sample(12, 130, 2)}, "site", "h1", 1, at_ms(10));
  ASSERT_TRUE(line);
  EXPECT_EQ(line->suspect, 15ms);
  EXPECT_EQ(line->commit, 15ms);
  EXPECT_EQ(line->raise, 20ms);
  EXPECT_EQ(line->ready, 30ms);
  EXPECT_EQ(line->switched, 25ms);
  EXPECT_EQ(line->recovery, 105ms);
  EXPECT_EQ(sum(*line), line->recovery);
  EXPECT_EQ(line->way, "frozen");
}

TEST(TimelineTest, WhateverIsMissingOrOutOfOrderTheyStillAddUp) {
  Moment ready = moment("ready", 90, 2);
  ready.ready_took = 500ms;  // longer than there was time: a clock of another machine, or nonsense
  const std::vector<std::vector<Moment>> all{
      {},                                               // control was dead: nobody reported
      {ready},
      {moment("suspect", 60, 1), moment("grant", 40, 2), ready},  // proof of death before the suspicion
      {moment("grant", 40, 2)},
      {moment("suspect", 5, 1), moment("grant", 200, 2)},  // before the injection, after the end
  };
  for (const auto& moments : all) {
    const auto line = timeline_of(moments, {sample(11, 115, 2)}, "site", "h1", 1, at_ms(10));
    ASSERT_TRUE(line);
    EXPECT_EQ(line->recovery, 105ms);
    EXPECT_EQ(sum(*line), line->recovery);
    for (nanoseconds phase : {line->suspect, line->commit, line->raise, line->ready, line->switched}) EXPECT_GE(phase, 0ns);
  }
}

TEST(TimelineTest, OthersEventsAreNotCounted) {
  const std::vector<Moment> moments{moment("host-silent", 20, 0, "", "h2"), moment("suspect", 22, 1, "other"),
                                    moment("host-silent", 30, 0, "", "h1"), moment("grant", 35, 9, "other"),
                                    moment("grant", 50, 2), moment("grant", 70, 3)};
  const auto line = timeline_of(moments, {sample(11, 115, 3)}, "site", "h1", 1, at_ms(10));
  ASSERT_TRUE(line);
  EXPECT_EQ(line->suspect, 20ms);
  EXPECT_EQ(line->commit, 20ms) << "the first grant took the right from the old owner";
}

TEST(TimelineTest, AnEventIsReadFromItsLine) {
  const auto json = nlohmann::json::parse(
      R"({"kind":"ready","workload":"site","host":"h2","epoch":512,"at_ns":77,"fields":{"ready_us":"1500","way":"image"}})");
  const auto read = moment_of(json);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->ready_took, 1500us);
  EXPECT_EQ(read->at, Instant(77ns));
  EXPECT_EQ(read->epoch, 512u);
  EXPECT_FALSE(moment_of(nlohmann::json::parse(R"({"kind":"x"})")));
  EXPECT_FALSE(moment_of(nlohmann::json::parse(R"([1])")));
}

// ---- what clients saw ----------------------------------------------------------------------------------------------

TEST(MetricsTest, ErrorsAndUnknownOutcomesAreCountedApart) {
  Sample unknown = sample(30, 40, 0, false);
  unknown.post = unknown.unknown = true;
  Sample lost = sample(40, 41, 0, false);
  lost.post = true;
  const Seen seen = seen_by_clients({sample(0, 10, 1), sample(20, 30, 0, false), unknown, lost, sample(50, 250, 2)});
  EXPECT_EQ(seen.requests, 5u);
  EXPECT_EQ(seen.correct, 2u);
  EXPECT_EQ(seen.get_errors, 1u);
  EXPECT_EQ(seen.post_errors, 1u);
  EXPECT_EQ(seen.unknown, 1u);
  EXPECT_EQ(seen.slowest, 200ms);
  EXPECT_EQ(seen.gap, 240ms);
}

TEST(MetricsTest, RanksAreOfTheValuesThemselves) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Row row = summarize("site cut", "image", "suspect", "ms", values);
  EXPECT_EQ(row.n, 100u);
  EXPECT_EQ(row.median, 50);
  EXPECT_EQ(row.p95, 95);
  EXPECT_EQ(row.min, 1);
  EXPECT_EQ(row.max, 100);
  EXPECT_EQ(nlohmann::json(row)["case"], "site cut");
  EXPECT_EQ(summarize("a", "b", "c", "ms", {}).n, 0u);
}

// ---- the client ----------------------------------------------------------------------------------------------------

/// Accepts connections and answers nothing until told to; then one answer to each, in order.
class SlowService {
 public:
  SlowService() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in where{};
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof where;
    ::bind(socket_, reinterpret_cast<sockaddr*>(&where), size);
    ::listen(socket_, 100);
    ::getsockname(socket_, reinterpret_cast<sockaddr*>(&where), &size);
    port_ = ntohs(where.sin_port);
  }
  ~SlowService() {
    for (int fd : held_) ::close(fd);
    ::close(socket_);
  }
  std::uint16_t port() const { return port_; }
  /// Waits for one more request.
  void take() {
    const int fd = ::accept(socket_, nullptr, nullptr);
    char text[2048];
    const ssize_t got = ::read(fd, text, sizeof text);
    requests.emplace_back(text, got > 0 ? static_cast<std::size_t>(got) : 0);
    held_.push_back(fd);
  }
  void answer_all(const std::string& text) {
    for (int fd : held_) EXPECT_EQ(::write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  std::vector<std::string> requests;

 private:
  int socket_;
  std::uint16_t port_ = 0;
  std::vector<int> held_;
};

TEST(LoadTest, RequestsStartOnTimeWhateverTheEarlierOnesDo) {
  auto held = std::make_unique<SlowService>();
  SlowService& service = *held;
  LoadOptions options;
  options.address = {"127.0.0.1", service.port()};
  options.host = "site.test";
  options.rate = 200;
  options.contains = "hello";
  options.post_path = "/add/{n}";
  options.post_body = "n={n}";
  options.post_share = 0.25;
  auto load = Load::start(std::move(options));
  ASSERT_TRUE(load) << load.error().text();
  // Twelve requests come although none is answered.
  for (int i = 0; i < 12; ++i) service.take();
  EXPECT_TRUE((*load)->samples().empty());
  service.answer_all("HTTP/1.1 200 OK\r\nx-yado-epoch: 512\r\nx-yado-instance: site@h1\r\nconnection: close\r\n"
                     "content-length: 5\r\n\r\nhello");
  const auto answered = (*load)->wait_for([](const Sample& s) { return s.number == 11; }, 30s);
  ASSERT_TRUE(answered);
  const auto samples = (*load)->samples();
  EXPECT_EQ(samples.size(), 12u);
  std::size_t posts = 0;
  for (const Sample& one : samples) {
    EXPECT_TRUE(one.correct) << one.error;
    EXPECT_EQ(one.epoch, 512u);
    EXPECT_EQ(one.instance, "site@h1");
    posts += one.post;
  }
  EXPECT_EQ(posts, 3u);
  // The first was due long before the last, and waited for all of that time.
  const auto first = std::ranges::find(samples, 0u, &Sample::number);
  EXPECT_GE(first->took(), answered->due - first->due);
  for (const std::string& request : service.requests) EXPECT_NE(request.find("host: site.test\r\n"), std::string::npos) << request;
  EXPECT_NE(service.requests[3].find("POST /add/3 HTTP/1.1"), std::string::npos) << service.requests[3];
  held.reset();  // what was started since then is refused
  EXPECT_GE((*load)->finish().size(), 12u);
}

}  // namespace
}  // namespace yado::drill
