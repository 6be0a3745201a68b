# Memory by host over time, and below what the guest waits for and what travels; yado-demo-split-vm sets `directory` (its data)
# and `output`, and writes what differs between runs into directory/settings.
load directory.'/settings'

height = 720
y_of(pixels) = 1 - pixels / (1.0 * height)
set terminal svg size 1260, height dynamic enhanced font 'Helvetica,13' background '#ffffff'
set output output
set encoding utf8

array color[6] = ['#1b6ca8', '#e08a00', '#2c8a4b', '#8a5fb0', '#777777', '#b8860b']
set border 3 lc rgb '#555555'
set tics nomirror out textcolor rgb '#333333'
set style line 9 lc rgb '#e4e4e4' lw 0.8
set grid xtics ytics ls 9
set xrange [0:last_s]
set lmargin at screen 0.065
set rmargin at screen 0.985
file = directory.'/trace'
unset key

do for [i = 0:marks - 1] {
  kind = value(sprintf('kind_%d', i))
  shade = kind eq 'checkpoint' ? '#333333' : kind eq 'moved' ? '#1b6ca8' : kind eq 'fault' ? '#c0143c' : '#2c8a4b'
  dashes = kind eq 'checkpoint' ? 3 : kind eq 'fault' ? 1 : 2
  if (kind eq 'moved') { set label 114 'moved while it ran' at first value(sprintf('mark_%d', i)), graph 0.92 left offset 0.8, 0 textcolor rgb '#1b6ca8' }
  if (kind eq 'recovered') { set label 113 'the rest still lies in the checkpoint' at first value(sprintf('mark_%d', i)), graph 0.92 left offset 0.8, 0 textcolor rgb '#2c8a4b' }
  at = value(sprintf('mark_%d', i))
  set arrow i + 1 from first at, graph 0 to first at, graph 1 nohead front lc rgb shade lw 1.5 dt dashes
}

set multiplot
set label 100 'Memory of one virtual machine by the host that holds it' at screen 0.065, screen y_of(26) left font ',18'
set label 101 'an unchanged page of the main host may have its copy on another, until the next checkpoint; '.machine at screen 0.065, screen y_of(46) left font ',11' textcolor rgb '#666666' noenhanced
do for [i = 0:hosts - 1] {
  set object i + 1 rectangle from screen 0.065 + i * 0.05, screen y_of(74) to screen 0.077 + i * 0.05, screen y_of(63) fc rgb color[i + 1] fs solid noborder
  set label 102 + i value(sprintf('host_%d', i)) at screen 0.081 + i * 0.05, screen y_of(69) left
}
mark_at = 0.085 + hosts * 0.05
set arrow 102 from screen mark_at, screen y_of(69) to screen mark_at + 0.022, screen y_of(69) nohead lc rgb '#333333' lw 1.5 dt 3
set label 110 'checkpoint taken' at screen mark_at + 0.027, screen y_of(69) left
set arrow 103 from screen mark_at + 0.145, screen y_of(69) to screen mark_at + 0.167, screen y_of(69) nohead lc rgb '#c0143c' lw 1.5
set label 111 'its host dies' at screen mark_at + 0.172, screen y_of(69) left
set arrow 104 from screen mark_at + 0.26, screen y_of(69) to screen mark_at + 0.282, screen y_of(69) nohead lc rgb '#2c8a4b' lw 1.5 dt 2
set label 112 'first answer after recovery, and after a restore on one host' at screen mark_at + 0.287, screen y_of(69) left

# Stacked: the sum of all first, the others over it.
set tmargin at screen y_of(95)
set bmargin at screen y_of(400)
set ylabel 'MiB' offset 1, 0
set yrange [0:*]
set format x ''
sum(n) = n == 0 ? column(2) : sum(n - 1) + column(2 + n)
plot for [i = hosts - 1:0:-1] file using 1:(sum(i)) with filledcurves y1=0 lc rgb color[i + 1]

do for [i = 100:114] { unset label i }
do for [i = 1:hosts] { unset object i }
unset arrow 102
unset arrow 103
unset arrow 104

set tmargin at screen y_of(420)
set bmargin at screen y_of(530)
set ylabel 'faults/s' offset 1, 0
plot file using 1:(column(2 + hosts)) with lines lc rgb '#555555' lw 1.4

set tmargin at screen y_of(550)
set bmargin at screen y_of(664)
set ylabel 'MiB/s' offset 1, 0
set format x '%g'
set xlabel 'seconds' offset 0, 0.4
set label 1 'paged in' at graph 0.995, graph 0.93 right textcolor rgb '#1b6ca8'
set label 2 'paged out (unchanged pages are not sent again)' at graph 0.995, graph 0.79 right textcolor rgb '#e08a00'
plot file using 1:(column(3 + hosts)) with lines lc rgb '#1b6ca8' lw 1.4, \
     file using 1:(column(4 + hosts)) with lines lc rgb '#e08a00' lw 1.4
unset multiplot
