#include "drill/load.hpp"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "os/clock.hpp"
#include "wire/client.hpp"

namespace yado::drill {
namespace asio = boost::asio;

namespace {
constexpr std::size_t kept_body_bytes = 4096;

std::string numbered(std::string text, std::uint64_t number) {
  if (const auto at = text.find("{n}"); at != std::string::npos) text.replace(at, 3, std::to_string(number));
  return text;
}

}  // namespace

struct Load::Impl {
  explicit Impl(LoadOptions wanted) : options(std::move(wanted)), run(fmt::format("{:x}", os::wall_ms())) {}

  LoadOptions options;
  const std::string run;  ///< tells this load's keys from an earlier one's
  asio::io_context io{1};
  std::unique_ptr<wire::Client> client;
  asio::steady_timer pace{io};
  std::thread thread;
  Status entered;
  bool stopping = false;       // of the thread
  std::uint64_t started = 0;   // of the thread

  mutable std::mutex mutex;
  mutable std::condition_variable changed;
  std::vector<Sample> samples;  // guarded by mutex

  void body() {
    client = std::make_unique<wire::Client>(wire::Client::plain(io, options.address.address, options.address.port));
    asio::co_spawn(io, keep_pace(), asio::detached);
    io.run();
    client.reset();
  }

  /// Spread evenly: the n-th is a POST when the share's running sum passes a whole number.
  bool is_post(std::uint64_t n) const {
    if (options.post_path.empty()) return false;
    const auto before = static_cast<std::uint64_t>(static_cast<double>(n) * options.post_share);
    return static_cast<std::uint64_t>(static_cast<double>(n + 1) * options.post_share) > before;
  }

  asio::awaitable<void> keep_pace() {
    const auto period = std::chrono::duration_cast<nanoseconds>(std::chrono::duration<double>(1 / options.rate));
    const Instant begin = os::now();
    while (!stopping) {
      const Instant due = begin + static_cast<std::int64_t>(started) * period;
      if (const nanoseconds ahead = due - os::now(); ahead > 0ns) {
        pace.expires_after(ahead);
        co_await pace.async_wait(asio::as_tuple(asio::use_awaitable));
        continue;  // looks at `stopping` again
      }
      asio::co_spawn(io, ask(started++, due), asio::detached);
    }
  }

  asio::awaitable<void> ask(std::uint64_t number, Instant due) {
    Sample sample;
    sample.number = number;
    sample.due = due;
    sample.post = is_post(number);
    wire::Request request;
    if (!options.host.empty()) request.headers.emplace_back("host", options.host);
    if (sample.post) {
      request.method = "POST";
      request.target = numbered(options.post_path, number);
      request.body = numbered(options.post_body, number);
      request.headers.emplace_back("content-type", "application/x-www-form-urlencoded");
      if (!options.key_header.empty()) request.headers.emplace_back(options.key_header, fmt::format("{}-{}", run, number));
    } else {
      request.target = options.path;
    }
    auto response = co_await client->call(std::move(request), options.limit);
    sample.ended = os::now();
    if (response)
      judge(*response, sample);
    else
      sample.error = response.error().text(), sample.unknown = sample.post && response.error().code != Errc::refused;
    const std::lock_guard lock(mutex);
    samples.push_back(std::move(sample));
    changed.notify_all();
  }

  void judge(const wire::Response& response, Sample& sample) const {
    sample.status = response.status;
    sample.instance = wire::find(response.headers, "x-yado-instance");
    if (const std::string epoch(wire::find(response.headers, "x-yado-epoch")); !epoch.empty())
      sample.epoch = std::strtoull(epoch.c_str(), nullptr, 10);
    sample.unknown = wire::find(response.headers, "x-yado-outcome") == "unknown";
    const int wanted = sample.post ? options.post_status : options.status;
    const bool has_text = sample.post || options.contains.empty() || response.body.find(options.contains) != std::string::npos;
    sample.correct = response.status == wanted && has_text;
    if (sample.correct && sample.post) sample.body = response.body.substr(0, kept_body_bytes);
    if (response.status != wanted)
      sample.error = fmt::format("{}: {}", response.status, response.body.substr(0, std::min<std::size_t>(response.body.find('\n'), 200)));
    else if (!has_text)
      sample.error = fmt::format("\"{}\" does not stand in the answer", options.contains);
  }
};

Result<std::unique_ptr<Load>> Load::start(LoadOptions options) {
  if (!(options.rate > 0 && options.rate <= 100'000))
    return fail(Errc::invalid_argument, "a rate of {} requests per second is not possible", options.rate);
  auto impl = std::make_unique<Impl>(std::move(options));
  Impl* mine = impl.get();
  // Enters the network before start() returns, so that a failure is an error here.
  std::mutex mutex;
  std::condition_variable ready;
  bool decided = false;
  impl->thread = std::thread([&, mine] {
    Status entered = mine->options.network.valid() ? mine->options.network.enter() : Status{};
    const bool go = entered.has_value();
    {
      const std::lock_guard lock(mutex);
      mine->entered = std::move(entered);
      decided = true;
      ready.notify_all();
    }
    if (go) mine->body();
  });
  {
    std::unique_lock lock(mutex);
    ready.wait(lock, [&] { return decided; });
  }
  if (!impl->entered) {
    impl->thread.join();
    return context(impl->entered.error(), "client");
  }
  return std::unique_ptr<Load>(new Load(std::move(impl)));
}

Load::Load(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Load::~Load() {
  if (impl_->thread.joinable()) finish();
}

std::vector<Sample> Load::samples() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->samples;
}

std::optional<Sample> Load::wait_for(const std::function<bool(const Sample&)>& wanted, nanoseconds limit) const {
  std::unique_lock lock(impl_->mutex);
  std::size_t seen = 0;
  std::optional<Sample> found;
  impl_->changed.wait_for(lock, limit, [&] {
    for (; seen < impl_->samples.size() && !found; ++seen)
      if (wanted(impl_->samples[seen])) found = impl_->samples[seen];
    return found.has_value();
  });
  return found;
}

std::vector<Sample> Load::finish() {
  asio::post(impl_->io, [mine = impl_.get()] {
    mine->stopping = true;
    mine->pace.cancel();
  });
  impl_->thread.join();
  std::ranges::sort(impl_->samples, {}, &Sample::number);
  return impl_->samples;
}

}  // namespace yado::drill
