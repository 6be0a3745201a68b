#include "agent/supervisor/operation.hpp"

#include <cerrno>
#include <csignal>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "agent/supervisor/protocol.hpp"
#include "api/fields.hpp"
#include "os/file.hpp"

namespace yado::supervisor {

Result<Operation> Operation::begin(const std::function<Result<nlohmann::json>(int)>& work) {
  YADO_ASSIGN(os::Pipe result, os::make_pipe(), "operation");
  YADO_ASSIGN(os::Pipe output, os::make_pipe(), "operation");
  Operation begun;
  const auto body = [&]() -> int {
    result.read.reset();
    output.read.reset();
    const Result<nlohmann::json> answer = work(output.write.get());
    nlohmann::json message = nlohmann::json::object();
    if (answer) message["answer"] = *answer;
    else message["error"] = answer.error();
    (void)os::write_all(result.write, api::dump(message));
    return 0;
  };
  YADO_ASSIGN(begun.process_, os::fork_child(body, SIGKILL), "operation");
  YADO_TRY(os::set_nonblocking(result.read), "operation");
  YADO_TRY(os::set_nonblocking(output.read), "operation");
  begun.result_ = std::move(result.read);
  begun.output_ = std::move(output.read);
  return begun;
}

bool Operation::read_result() {
  char buffer[4096];
  for (;;) {
    const ssize_t n = ::read(result_.get(), buffer, sizeof buffer);
    if (n > 0) result_text_.append(buffer, static_cast<std::size_t>(n));
    else if (n == 0) break;
    else if (errno == EAGAIN) return false;
    else if (errno != EINTR) break;
  }
  read_output();
  process_.kill();  // it has nothing more to say; reaps
  return true;
}

void Operation::read_output() {
  char buffer[16384];
  while (output_.valid()) {
    const ssize_t n = ::read(output_.get(), buffer, sizeof buffer);
    if (n > 0) {
      // What does not fit is read all the same, so that the program does not wait for a reader.
      const std::size_t room = exec_output_bytes - output_text_.size();
      truncated_ = truncated_ || static_cast<std::size_t>(n) > room;
      output_text_.append(buffer, std::min(static_cast<std::size_t>(n), room));
    } else if (n == 0) {
      output_.reset();
    } else if (errno != EINTR) {
      return;
    }
  }
}

Result<nlohmann::json> Operation::answer() const {
  if (result_text_.empty()) return fail(Errc::internal, "the process that did it ended without an answer");
  YADO_ASSIGN(const nlohmann::json message, api::parse_json(result_text_), "operation");
  if (const auto found = message.find("answer"); found != message.end()) return *found;
  const auto error = message.find("error");
  if (error == message.end()) return fail(Errc::internal, "the process that did it gave no answer");
  auto parsed = api::from_json_value<Error>(*error);
  return std::unexpected(parsed ? *parsed : parsed.error());
}

}  // namespace yado::supervisor
