#include "traffic.hpp"

#include <unistd.h>

#include <algorithm>
#include <map>

#include "os/clock.hpp"

namespace yado::labtest {
namespace {
/// Rows that stand in the database before: the right answer to every GET is their number.
constexpr int known_rows = 4711;
constexpr const char* known_id = "known";
}  // namespace

Result<std::unique_ptr<Traffic>> Traffic::start(const Cluster& cluster, const std::string& workload, double rate,
                                                double post_share) {
  static int number = 0;
  std::unique_ptr<Traffic> made(new Traffic(cluster, workload));
  made->prefix_ = fmt::format("{}-{}-{}", workload, ::getpid(), ++number);
  YADO_TRY(cluster.sql(fmt::format("insert into counted (id) select '{}' from generate_series(1, {} - (select count(*) "
                                   "from counted where id = '{}'))",
                                   known_id, known_rows, known_id)),
           "known rows");
  drill::LoadOptions options;
  options.address = cluster.gate();
  options.host = workload + ".test";
  options.rate = rate;
  options.path = fmt::format("/get?id={}", known_id);
  options.contains = std::to_string(known_rows);
  options.post_path = fmt::format("/add?id={}-{{n}}", made->prefix_);
  options.post_status = 201;
  options.post_share = post_share;
  options.limit = generous;
  YADO_ASSIGN(made->load_, drill::Load::start(std::move(options)), "load");
  if (!made->serves_since(Instant{}, generous)) {
    std::string last[2];
    for (const drill::Sample& sample : made->load_->finish())
      last[sample.post] = sample.correct ? "answered" : sample.error;
    return fail(Errc::unavailable, "{} does not serve; the last GET: {}; the last POST: {}", workload, last[0],
                last[1]);
  }
  return made;
}

std::optional<drill::Sample> Traffic::answered_after(std::uint64_t epoch, nanoseconds limit) const {
  return load_->wait_for([&](const drill::Sample& sample) { return sample.correct && sample.epoch > epoch; }, limit);
}

bool Traffic::serves_since(Instant moment, nanoseconds limit) const {
  const auto after = [&](bool post) {
    return load_
        ->wait_for(
            [&](const drill::Sample& sample) { return sample.correct && sample.post == post && sample.due > moment; },
            limit)
        .has_value();
  };
  return after(false) && after(true);
}

std::string Verdict::text() const {
  std::string all = fmt::format("{} GETs, {} POSTs: {} acknowledged, {} unknown, {} refused; slowest {:.0f} ms", gets,
                                posts, acknowledged, unknown, refused, to_ms(slowest));
  for (std::size_t i = 0; i < wrong.size() && i < 10; ++i) all += "\n  " + wrong[i];
  if (wrong.size() > 10) all += fmt::format("\n  and {} more", wrong.size() - 10);
  return all;
}

Verdict Traffic::finish() {
  Verdict verdict;
  verdict.samples = load_->finish();
  const auto rows =
      cluster_.sql(fmt::format("select id, count(*) from counted where id like '{}-%' group by id", prefix_));
  if (!rows) {
    verdict.wrong.push_back(rows.error().text());
    return verdict;
  }
  std::map<std::string, long> counted;
  for (const std::string& row : *rows)
    counted[row.substr(0, row.find('|'))] = std::atol(row.substr(row.find('|') + 1).c_str());
  for (const drill::Sample& sample : verdict.samples) {
    verdict.slowest = std::max(verdict.slowest, sample.took());
    const auto complain = [&](const std::string& what) {
      verdict.wrong.push_back(fmt::format(
          "{} {}: {} (status {}, epoch {}, {:.0f} ms{}{})", sample.post ? "POST" : "GET", sample.number, what,
          sample.status, sample.epoch, to_ms(sample.took()), sample.error.empty() ? "" : ": ", sample.error));
    };
    if (!sample.post) {
      ++verdict.gets;
      if (!sample.correct) complain("wrong answer");
      continue;
    }
    ++verdict.posts;
    const auto found = counted.find(fmt::format("{}-{}", prefix_, sample.number));
    const long times = found == counted.end() ? 0 : found->second;
    if (times > 1) complain(fmt::format("counted {} times", times));
    if (sample.correct) {
      ++verdict.acknowledged;
      if (times != 1) complain("acknowledged, not counted");
    } else if (sample.unknown) {
      ++verdict.unknown;
      if (sample.status != 502) complain("an unknown outcome without a 502");
    } else {
      ++verdict.refused;
      if (times != 0) complain("refused, but counted");
    }
  }
  return verdict;
}

}  // namespace yado::labtest
