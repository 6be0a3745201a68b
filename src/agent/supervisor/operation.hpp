#pragma once
// Long work of a supervisor (checkpoint, exec, watching a start-up) in a forked child, so that the one thread that
// keeps the lease never waits for it. The child shares nothing back but a text.

#include <functional>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "os/process.hpp"

namespace yado::supervisor {

class Operation {
 public:
  /// `work` runs in the child and returns the fields of the answer; `output` is where a program's output goes.
  static Result<Operation> begin(const std::function<Result<nlohmann::json>(int output)>& work);

  /// Descriptors for poll: the result (ready at its end, too) and the output.
  int result_fd() const { return result_.get(); }
  int output_fd() const { return output_.get(); }
  /// Reads what is there. True when the child has said everything and was reaped.
  bool read_result();
  void read_output();
  /// After read_result said true.
  Result<nlohmann::json> answer() const;
  const std::string& output() const { return output_text_; }
  bool truncated() const { return truncated_; }
  void cancel() { process_.kill(); }

 private:
  os::Process process_;
  os::Fd result_, output_;
  std::string result_text_, output_text_;
  bool truncated_ = false;
};

}  // namespace yado::supervisor
