# Penalised functions beside random effects, one Gaussian expert, by mgcv: Rscript tests/golden/make_mgcv.R, from the root
# of a clone. Smoothing parameters and variances by maximum marginal likelihood; a random effect is a term bs = "re".
suppressPackageStartupMessages({library(mgcv); library(jsonlite)})

sim <- read.csv("tests/golden/sim_unbalanced.csv", stringsAsFactors = FALSE)
# columns that test_mgcv.py makes in the same way: rows i = 0, 1, ...
i <- seq_len(nrow(sim)) - 1
sim$w <- 0.25 + (7 * i) %% 5
sim$off <- -0.5 * sim$x1
sim$g <- ifelse(sim$id %% 2 == 0, "even", "odd")
sim$hour <- (5 * sim$time) %% 1
sim$r <- sim$y + sin(2 * pi * sim$hour) + sim$x1 * cos(2 * sim$time) + (sim$g == "even") * sin(3 * sim$time)
sim$fid <- factor(sim$id)
sim$fg <- factor(sim$g)

cases <- list(
  list(name = "by", formula = "r ~ s(time) + s(time, by=x1) + z1 | re: (1 | id)",
       model = r ~ s(time, bs = "ps", k = 15) + s(time, by = x1, bs = "ps", k = 15) + z1 + s(fid, bs = "re")),
  list(name = "weights", formula = "r ~ s(time, k=10) + x1 | re: (1 | id)", weighted = TRUE,
       model = r ~ s(time, bs = "ps", k = 10) + x1 + offset(off) + s(fid, bs = "re")),
  list(name = "slope", formula = "r ~ s(time, k=8) + x1 | re: (1 + time || id)",
       model = r ~ s(time, bs = "ps", k = 8) + x1 + s(fid, bs = "re") + s(fid, time, bs = "re")),
  list(name = "factor", formula = "r ~ g + s(time, k=9, by=g) + x1 | re: (1 | id)",
       model = r ~ fg + s(time, bs = "ps", k = 9, by = fg) + x1 + s(fid, bs = "re")),
  list(name = "first order", formula = "r ~ s(time, k=12, m=1) + x1 | re: (1 | id)",
       model = r ~ s(time, bs = "ps", k = 12, m = c(2, 1)) + x1 + s(fid, bs = "re")),
  list(name = "periodic", formula = "r ~ time + s(hour, bs='cc', k=9, ends=(0, 1)) + x1 | re: (1 | id)",
       model = r ~ time + s(hour, bs = "cc", k = 9) + x1 + s(fid, bs = "re"))
)

run <- function(case) {
  sim$prior <- if (is.null(case$weighted)) rep(1, nrow(sim)) else sim$w
  m <- gam(case$model, data = sim, weights = prior, method = "ML", knots = list(hour = c(0, 1)),
           control = gam.control(epsilon = 1e-12, newton = list(conv.tol = 1e-10)))
  capture.output(v <- gam.vcomp(m))
  v <- if (is.list(v)) v$vc else v
  rows <- seq(1, nrow(sim), by = 25)
  terms <- predict(m, sim[rows, ], type = "terms", se.fit = TRUE)
  smooth <- grep("^s\\(", colnames(terms$fit), value = TRUE)
  smooth <- smooth[!grepl("fid", smooth)]
  edf <- sapply(m$smooth, function(s) sum(m$edf[s$first.para:s$last.para]))
  names(edf) <- sapply(m$smooth, function(s) s$label)
  deviation <- v[, "std.dev"]
  list(name = case$name, formula = case$formula, weights = if (is.null(case$weighted)) NULL else "w",
       rows = rows - 1, terms = lapply(smooth, function(s) list(fit = terms$fit[, s], se = terms$se.fit[, s])),
       edf = unname(edf[smooth]), sd = unname(deviation[grepl("fid", rownames(v))]),
       sigma = unname(deviation[rownames(v) == "scale"]), pearson = sqrt(m$sig2), criterion = m$gcv.ubre[[1]])
}

stored <- list(versions = list(R = R.version.string, mgcv = as.character(packageVersion("mgcv"))), cases = lapply(cases, run))
write(toJSON(stored, digits = 10, auto_unbox = TRUE, pretty = TRUE, null = "null"), "tests/golden/mgcv.json")
