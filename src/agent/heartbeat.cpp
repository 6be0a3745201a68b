#include "agent/heartbeat.hpp"

#include <algorithm>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "api/fields.hpp"
#include "base/log.hpp"

namespace yado {

// Found by argument-dependent lookup (api/fields.hpp).
static void read_json(const nlohmann::json& json, const std::string& path, Status& status, StopCall& value) {
  auto read = api::from_json_value<StopCall>(json);
  if (read) value = std::move(*read);
  else status = context(read.error(), path);
}
static void read_json(const nlohmann::json& json, const std::string& path, Status& status, DropImageCall& value) {
  auto read = api::from_json_value<DropImageCall>(json);
  if (read) value = std::move(*read);
  else status = context(read.error(), path);
}

namespace agent {

namespace asio = boost::asio;

namespace {

constexpr milliseconds first_pace{200};  // until control names its own
/// A lost control is asked again at growing pauses: soon enough for a restarted one to hear of every host within the
/// time that it needs itself.
constexpr milliseconds longest_pause{2'000};
/// An answer that takes longer is as good as none; the next report says it all again.
constexpr milliseconds answer_limit{2'000};

}  // namespace

static void read_json(const nlohmann::json& json, const std::string& path, Status& status, HeartbeatAnswer& value) {
  api::Fields(json, path, status).optional("retire", value.retire).optional("drop", value.drop).optional("heartbeat_ms", value.pace);
}

Result<HeartbeatAnswer> heartbeat_answer_from_json(std::string_view text) { return api::parse<HeartbeatAnswer>(text); }

struct Heartbeat::State {
  State(asio::io_context& context, wire::Client& to, HostId name) : client(to), host(std::move(name)), timer(context) {}
  wire::Client& client;
  HostId host;
  asio::steady_timer timer;
  std::function<std::string()> report;
  std::function<void(const HeartbeatAnswer&)> answered;
  milliseconds pace = first_pace;
  milliseconds pause{0};  ///< control does not answer: how long until it is asked again
  bool changed = false;
  bool stopped = false;
};

Heartbeat::Heartbeat(asio::io_context& io, wire::Client& client, HostId host, std::function<std::string()> report,
                     std::function<void(const HeartbeatAnswer&)> answered)
    : state_(std::make_shared<State>(io, client, std::move(host))) {
  state_->report = std::move(report);
  state_->answered = std::move(answered);
}

asio::awaitable<void> Heartbeat::run() {
  const std::shared_ptr<State> state = state_;
  while (!state->stopped) {
    state->changed = false;
    wire::Request request;
    request.method = "POST";
    request.target = fmt::format("/v1/agents/{}/heartbeat", state->host);
    request.headers = {{"content-type", "application/json"}};
    request.body = state->report();
    auto response = co_await state->client.call(std::move(request), answer_limit);
    if (state->stopped) co_return;
    Status said;
    if (!response) {
      said = std::unexpected(response.error());
    } else if (response->status != 200) {
      said = fail(Errc::unavailable, "status {}: {}", response->status, response->body.substr(0, 200));
    } else if (auto answer = heartbeat_answer_from_json(response->body); !answer) {
      said = std::unexpected(answer.error());
    } else {
      if (answer->pace > milliseconds(0)) state->pace = answer->pace;
      if (state->pause > milliseconds(0)) log::info("control answers again");
      state->pause = milliseconds(0);
      state->answered(*answer);
    }
    if (!said) {
      if (state->pause == milliseconds(0)) log::warn("control does not take the heart-beat: {}; what runs goes on", said.error().text());
      state->pause = std::clamp(state->pause * 2, state->pace, std::max(longest_pause, state->pace));
    }
    if (state->stopped) co_return;
    if (state->changed && state->pause == milliseconds(0)) continue;
    state->timer.expires_after(state->pause > milliseconds(0) ? state->pause : state->pace);
    boost::system::error_code woken;
    co_await state->timer.async_wait(asio::redirect_error(asio::use_awaitable, woken));
  }
}

void Heartbeat::hurry() {
  state_->changed = true;
  if (state_->pause == milliseconds(0)) state_->timer.cancel();
}

void Heartbeat::stop() {
  state_->stopped = true;
  state_->timer.cancel();
}

}  // namespace agent
}  // namespace yado
