// One binary: every command and role is in src/cli, one file each.

#include "cli/cli.hpp"

int main(int argc, char** argv) { return yado::cli::run(argc, argv); }
