#pragma once
// Demos and benchmarks read their options alike.

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <cstdio>
#include <optional>

namespace yado::bench {

/// None: go on. Otherwise the exit status: help was printed, or what is wrong with the options was said, with `name` in front.
inline std::optional<int> read_options(CLI::App& app, int argc, char** argv, const char* name) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return 0;
  } catch (const CLI::ParseError& wrong) {
    fmt::print(stderr, "{}: {}\n", name, wrong.what());
    return 2;
  }
  return std::nullopt;
}

}  // namespace yado::bench
