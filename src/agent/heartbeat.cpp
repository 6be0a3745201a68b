#include "agent/heartbeat.hpp"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "os/clock.hpp"

namespace yado::agent {

namespace asio = boost::asio;

namespace {

constexpr milliseconds first_pace{200};  // until control names its own
/// A lost control is asked again at growing pauses: soon enough for a restarted one to hear of every host within the
/// time that it needs itself.
constexpr milliseconds longest_pause{2'000};
/// An answer that takes longer is as good as none; the next report says it all again.
constexpr milliseconds answer_limit{2'000};

}  // namespace

namespace {

template <class Call>
Status read_calls(const nlohmann::json& json, const char* key, std::vector<Call>& into) {
  const auto list = json.find(key);
  if (list == json.end() || list->is_null()) return {};
  if (!list->is_array()) return fail(Errc::invalid_argument, "{}: is not an array", key);
  for (const nlohmann::json& item : *list) {
    YADO_ASSIGN(Call call, api::from_json_value<Call>(item), key);
    into.push_back(std::move(call));
  }
  return {};
}

}  // namespace

Result<HeartbeatAnswer> heartbeat_answer_from_json(std::string_view text) {
  YADO_ASSIGN(const nlohmann::json json, api::parse_json(text), "heart-beat answer");
  if (!json.is_object()) return fail(Errc::invalid_argument, "heart-beat answer: no object");
  HeartbeatAnswer answer;
  YADO_TRY(read_calls(json, "retire", answer.retire), "heart-beat answer");
  YADO_TRY(read_calls(json, "drop", answer.drop), "heart-beat answer");
  if (const auto expected = json.find("expected"); expected != json.end() && expected->is_array()) {
    answer.expected.emplace();
    for (const nlohmann::json& one : *expected)
      if (one.is_string()) answer.expected->emplace_back(one.get<std::string>());
  }
  // Bounds: a wrong number must neither flood control nor silence this host.
  if (const auto pace = json.find("heartbeat_ms"); pace != json.end() && pace->is_number_unsigned())
    answer.pace = milliseconds(std::clamp<std::uint64_t>(pace->get<std::uint64_t>(), 10, 60'000));
  return answer;
}

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
    const Instant asked = os::now();
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
      answer->asked = asked;
      state->answered(*answer);
    }
    if (!said) {
      if (state->pause == milliseconds(0))
        log::warn("control does not take the heart-beat: {}; what runs goes on", said.error().text());
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

}  // namespace yado::agent
